"""A chat base whose turns end on another token than its end token: training, answers, and a run."""

import csv
import json
from pathlib import Path

import pytest
import torch
from chat_templates import GEMMA, byte_level
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from loramix import GateConfig, MixtureModel
from loramix.bases.loading import Base, load_base
from loramix.cli.main import cli
from loramix.config import Prompting
from loramix.data.conversations import Conversation
from loramix.data.tasks import Task
from loramix.data.tokens.answers import Answer
from loramix.data.tokens.batches import Collator
from loramix.data.tokens.encoding import encode
from loramix.errors import DataError, MixtureError, RecipeError
from loramix.experiment import runner
from loramix.experiment.answers import encode_all, generate_answers
from loramix.experiment.reading import load_recipe
from loramix.mixture.explanation import explain

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
)
QUESTION, ANSWER, CAP = "what is white?", "the soft white snow", 40
TURNS = [{"role": "user", "content": QUESTION}]


def task(**changes: object) -> Task:
    fields = {"name": "talk", "source": "a.jsonl", "format": "messages", "max_new_tokens": CAP}
    return Task.model_validate(fields | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base that has learned one answer of four words by heart, turn's end included."""
    folder = tmp_path_factory.mktemp("base") / "tiny-chat"
    tokenizer = byte_level(GEMMA)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    text = Conversation(TURNS).to_text()
    batch = Collator(tokenizer, causal=True)(
        [encode(tokenizer, task(), text, ANSWER, causal=True, chat=True)]
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.05
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(folder: Path) -> Base:
    return load_base(str(folder))


@pytest.fixture(scope="module")
def mixture(folder: Path) -> Path:
    """A saved mixture over the base, of two experts that change nothing yet."""
    experts = {}
    for name in "ab":
        experts[name] = folder.parent / name
        config = LoraConfig(r=2, target_modules=["q_proj"])
        get_peft_model(load_base(str(folder)).model, config).save_pretrained(experts[name])
    mixture = MixtureModel.from_experts(folder, experts, gate=GateConfig(hidden=4))
    mixture.prompting = Prompting(chat=True, templates={"white": "what is {input}?"})
    mixture.save_pretrained(folder.parent / "mixture")
    return folder.parent / "mixture"


def test_a_benchmark_answer_of_four_words_does_not_run_on_to_the_cap(base: Base) -> None:
    recipe = load_recipe("tiny", ["generation.num_beams=1", "generation.repetition_penalty=1"])
    recipe = recipe.model_copy(update={"base": recipe.base.model_copy(update={"chat": True})})
    asked = [(task(), Conversation(TURNS).to_text(), None)]
    encoded = encode_all(base.model, base.tokenizer, recipe, asked)
    answers = generate_answers(
        base.model, base.tokenizer, recipe, task(), encoded * 2, label="talk"
    )
    assert answers == [Answer(ANSWER, finished=True)] * 2
    # With the tokenizer's and the generation config's end token alone, it does run on.
    ids = torch.tensor([encoded[0].prompt])
    assert base.model.generation_config.eos_token_id == base.tokenizer.eos_token_id == 2
    ran_on = base.model.generate(ids, max_new_tokens=CAP, do_sample=False)
    assert ran_on.shape[1] == ids.shape[1] + CAP


def test_the_command_line_ends_an_answer_with_its_turn(mixture: Path) -> None:
    plain = CliRunner().invoke(cli, ["generate", str(mixture), QUESTION])
    of_task = CliRunner().invoke(cli, ["generate", str(mixture), "white", "--task", "white"])
    assert plain.output.splitlines()[-1] == of_task.output.splitlines()[-1] == ANSWER


def test_a_mixture_takes_messages_as_its_prompt(mixture: Path) -> None:
    loaded = MixtureModel.from_pretrained(mixture)
    one = loaded.text_inputs(QUESTION)
    assert torch.equal(loaded.text_inputs(TURNS)["input_ids"], one["input_ids"])
    assert torch.equal(loaded.text_inputs(Conversation(TURNS))["input_ids"], one["input_ids"])
    turns = [*TURNS, {"role": "assistant", "content": "snow"}, *TURNS]
    assert loaded.tokenizer.decode(loaded.text_inputs(turns)["input_ids"][0]).count(QUESTION) == 2
    assert explain(loaded, turns).prompt.splitlines() == [
        *(f"user: {QUESTION}", "assistant: snow", f"user: {QUESTION}")
    ]
    with pytest.raises(MixtureError, match="without the template of task 'white'"):
        loaded.text_inputs(turns, task="white")


def test_special_tokens_are_special_in_a_prompt_by_hand_alone(mixture: Path) -> None:
    loaded = MixtureModel.from_pretrained(mixture)
    end = loaded.tokenizer.convert_tokens_to_ids("<end_of_turn>")

    def ends(text: object, **settings: str) -> int:
        return loaded.text_inputs(text, **settings)["input_ids"][0].tolist().count(end)

    written = "white<end_of_turn>"
    assert ends(written) == ends(written, task="white") == 1  # the template's own
    assert ends([{"role": "user", "content": written}]) == 1
    loaded.prompting = loaded.prompting.model_copy(update={"chat": False})
    assert ends(written) == 1
    assert ends(written, task="white") == 0


def test_a_recipe_of_conversations_needs_a_chat_template(folder: Path, tmp_path: Path) -> None:
    recipe = chat_recipe(folder, tmp_path)
    with pytest.raises(RecipeError, match=r"'talk'.*set base\.chat=true"):
        load_recipe(str(recipe), ["base.chat=false"])
    with pytest.raises(RecipeError, match=r"base\.chat: the tokenizer has no chat template"):
        load_recipe(str(recipe), ["base.name=tiny-llama"])


def chat_recipe(folder: Path, where: Path) -> Path:
    """Write a file of conversations and a recipe for it, and return the recipe."""
    colours = ("white", "soft", "quiet", "under", "rain")
    rows = []
    for number in range(60):
        asked = f"what is {colours[number % 5]} {number}?"
        first = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes?"}]
        turns = [*first * (number % 2), {"role": "user", "content": asked}]
        said = f"the snow\n  of {number}, {'</s>' * (number % 3)} it sleeps"
        rows.append({"messages": [*turns, {"role": "assistant", "content": said}]})
    (where / "talk.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = where / "talk.yaml"
    recipe.write_text(
        f"""
name: talk
base: {{name: {folder}, chat: true}}
tasks:
  - {{name: talk, source: {where / "talk.jsonl"}, metrics: [rouge], max_new_tokens: 24}}
  - name: poems
    source: package:demo/haiku.jsonl
    input_column: keywords
    target_column: text
    prompt: "haiku: {{input}}"
    metrics: [rouge]
    max_input_tokens: 64
    max_new_tokens: 8
samples: 60
finetune: {{epochs: 1, train_samples: 8, validation_samples: 2}}
lora: {{epochs: 1, rank: 2, train_samples: 8, validation_samples: 2}}
gate: {{epochs: 1, train_samples: 8, validation_samples: 2}}
generation: {{test_samples: 3}}
""",
        encoding="utf-8",
    )
    return recipe


def test_a_conversation_that_the_template_does_not_take_is_refused_before_any_training(
    folder: Path, tmp_path: Path
) -> None:
    recipe = chat_recipe(folder, tmp_path)
    file = tmp_path / "talk.jsonl"
    rows = file.read_text(encoding="utf-8").splitlines()
    odd = json.loads(rows[-1])
    odd["messages"].insert(0, {"role": "system", "content": "be brief"})
    file.write_text("\n".join([*rows[:-1], json.dumps(odd)]), encoding="utf-8")
    said = r"task 'talk'.*System role not supported; the sample is .*be brief"
    with pytest.raises(DataError, match=said):
        runner.run(load_recipe(str(recipe)), tmp_path / "run")
    assert not (tmp_path / "run" / "benchmark").exists()


@pytest.mark.slow
def test_a_chat_task_runs_from_its_file_to_its_page(folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(chat_recipe(folder, tmp_path)))
    assert recipe.tasks[0].conversational
    runner.run(recipe, tmp_path / "run")
    with (tmp_path / "run" / "cgm" / "talk.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert all(row["reference"].startswith("the snow\n  of ") for row in rows)
    assert all(json.loads(row["input"])["messages"][-1]["role"] == "user" for row in rows)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert rows[0]["reference"].replace("<", "&lt;").replace(">", "&gt;") in page
    assert "user: " in page
    assert "&#34;role&#34;" not in page  # turns, and no JSON
    mixture = MixtureModel.from_pretrained(tmp_path / "run" / "cgm" / "models")
    assert mixture.prompting.chat


def test_lm_eval_ends_an_answer_with_its_turn(mixture: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from lm_eval.api.instance import Instance

    from loramix.harness import MixtureLM

    harness = MixtureLM(str(mixture), device="cpu")
    context = harness.apply_chat_template(TURNS)
    asked = Instance("generate_until", {}, (context, {"until": ["\n\n"], "max_gen_toks": CAP}), 0)
    assert harness.generate_until([asked], disable_tqdm=True) == [ANSWER]
