"""Training of gates: the language model's loss and, if asked for, losses on the weights."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from loramix.data.tasks import Task
from loramix.experiment.recipe import GateSpec
from loramix.experiment.run import ROUTING_STEP_COLUMNS, ROUTING_STEPS
from loramix.experiment.training.gate_losses import imbalance, label_loss, means_of_experts
from loramix.experiment.training.mixing_trainer import MixingTrainer
from loramix.mixture.gate import ContextGate
from loramix.mixture.routing_measures import entropy
from loramix.mixture.state import recording
from loramix.mixture.weights import RoutingWeights
from loramix.storage.files import write_csv

AUXILIARY_LOSSES = "auxiliary.csv"
AUXILIARY = ("entropy", "balance", "supervised")
_MEASURED, _MEANS = "measured/", "means/"  # begin the names of what a checkpoint keeps
_WEIGHT = "weight/"  # begins the names under which the log keeps mean weights


class GateTrainer(MixingTrainer):
    """Trainer that measures the gates' auxiliary losses, and adds those with a coefficient.

    A batch holds one task. The balance takes the other tasks' means from their last batches; an
    expert's tasks count as one.

    own: the expert of every task. experts: those of the mixture, in its order.
    """

    def __init__(
        self,
        *args: object,
        spec: GateSpec,
        tasks: Sequence[Task],
        own: Sequence[str],
        experts: Sequence[str],
        **kwargs: object,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._tasks, self._experts = [task.name for task in tasks], list(experts)
        self._own = [self._experts.index(expert) for expert in own]
        self._by_width = spec.rates == "width"
        self._coefficients = {name: float(getattr(spec, name)) for name in AUXILIARY}
        self._measured: dict[str, list[float]] = defaultdict(list)  # since the last log entry
        self._last_means: dict[int, Tensor] = {}  # (L, E) by task index, detached

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the optimizer, in which every parameter has a rate that the gate's scores bear.

        A step of Adam moves each of a unit's weights by about the rate, and so its sum over D
        inputs by D times as much: at the rate of a bias, a few steps would write over what the
        prototypes know.
        """
        if not self._by_width:
            plain: torch.optim.Optimizer = super().create_optimizer(model)
            return plain
        kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        rate = settings["lr"]
        groups = [
            {"params": [parameter], "lr": rate / width}
            for gate in self.model.gates.values()
            for parameter, width in widths(gate)
            if parameter.requires_grad
        ]
        optimizer: torch.optim.Optimizer = kind(groups, **settings)
        self.optimizer = optimizer
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, object]:
        """Return the loss; in training, with auxiliary losses averaged over the accumulation."""
        with recording() as used:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:  # the validation loss stays the language model's alone
            for name, value in self._auxiliary(used, int(inputs["task"])).items():
                self._measured[name].append(float(value.detach()))
                if self._coefficients[name]:
                    # transformers does not divide a loss that counts its own tokens
                    scaled = self._coefficients[name] * value.to(loss.device)
                    loss = loss + scaled / self.args.gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: object, **kwargs: object) -> None:
        """Add the means of the auxiliary losses since the last entry."""
        if "loss" in logs:  # a training entry; those of evaluations have `eval_loss`
            for task, means_LE in sorted(self._last_means.items()):
                for expert, weight in enumerate(means_LE.mean(0)):
                    logs[f"{_WEIGHT}{task}/{expert}"] = round(float(weight), 6)
            for name, values in self._measured.items():
                logs[name] = sum(values) / len(values)
            self._measured.clear()
        super().log(logs, *args, **kwargs)

    def progress(self) -> dict[str, Tensor]:
        """Return what has been summed up, and the last means of every task."""
        measured = {
            f"{_MEASURED}{name}": torch.tensor(values, dtype=torch.float64)
            for name, values in self._measured.items()
        }
        means = {f"{_MEANS}{task}": means.cpu() for task, means in self._last_means.items()}
        return super().progress() | measured | means

    def go_on(self, progress: Mapping[str, Tensor]) -> None:
        """Sum up from there on, with the last means as they were."""
        super().go_on(progress)
        for key, value in progress.items():
            if key.startswith(_MEASURED):
                self._measured[key.removeprefix(_MEASURED)] = value.tolist()
            if key.startswith(_MEANS):
                self._last_means[int(key.removeprefix(_MEANS))] = value.to(self.args.device)

    def write_history(self, folder: Path, label: str) -> None:
        """Write losses.csv, losses.png, auxiliary.csv and routing_steps.csv.

        auxiliary.csv holds the auxiliary losses, with or without a coefficient; routing_steps.csv
        the mean weights over all layers of each task's last batch.
        """
        super().write_history(folder, label)
        losses: list[tuple[float, ...]] = []
        weights: list[tuple[object, ...]] = []
        for entry in self.state.log_history:
            step = int(entry["step"])
            if AUXILIARY[0] in entry:
                values = (round(entry[name], 6) for name in AUXILIARY)
                losses.append((step, float(entry["epoch"]), *values))
            for key in entry:
                if key.startswith(_WEIGHT):  # weight/<task>/<expert>, both by index
                    task, expert = map(int, key.removeprefix(_WEIGHT).split("/"))
                    weights.append((step, self._tasks[task], self._experts[expert], entry[key]))
        write_csv(folder / AUXILIARY_LOSSES, ("step", "epoch", *AUXILIARY), losses)
        write_csv(folder / ROUTING_STEPS, ROUTING_STEP_COLUMNS, weights)

    def _auxiliary(self, used: Mapping[str, RoutingWeights], task: int) -> dict[str, Tensor]:
        """Return every auxiliary loss of the batch of all processes, the mean over layers."""
        place = self.args.device  # layers of a spread base lie on several
        weights_LBE = torch.stack([each.row_mean.to(place) for each in used.values()])
        means_LE = self._mean(weights_LBE.mean(1))
        others = {other: means for other, means in self._last_means.items() if other != task}
        self._last_means[task] = means_LE.detach()
        of_experts_LKE = means_of_experts({task: means_LE, **others}, self._own)
        return {
            "entropy": self._mean(entropy(weights_LBE).mean()),
            "balance": imbalance(of_experts_LKE),
            "supervised": self._mean(label_loss(weights_LBE, self._own[task])),
        }

    def _mean(self, own: Tensor) -> Tensor:
        """Return the mean over the processes, which have as many rows each.

        Its gradient is that of this process's part alone, not divided by their number: the
        gradients of all are averaged.
        """
        if self.accelerator.num_processes == 1:
            return own
        mean: Tensor = self.accelerator.reduce(own.detach().clone(), "mean")
        return mean + (own - own.detach())


def widths(gate: ContextGate) -> Iterator[tuple[Tensor, float]]:
    """Yield the parameters of a gate, and by how much a step of each moves a score, in steps of a
    bias: contexts have root mean square 1, and a hidden unit is about as large as its bias.
    """
    yield gate.lift.weight, gate.lift.in_features
    if gate.pooling is not None:
        yield gate.pooling.query, gate.lift.in_features
    largest = 0.0
    if gate.lift.bias is not None:
        yield gate.lift.bias, 1.0
        yield gate.score.bias, 1.0
        largest = float(gate.lift.bias.detach().abs().max())
    yield gate.score.weight, gate.score.in_features * (1.0 + largest)
    yield gate.prior, 1.0
