"""Draw the routing of several prompts into one SVG, the picture at the top of the README:

    python benchmarks/adapters.py TASKS --out results/adapters     (docs/results.md: own adapters)
    loramix mix results/eight --no-first-pass --expert … --examples …     (all eight, as there)
    python benchmarks/routing_picture.py results/eight docs/pictures/routing.svg

One forward pass per prompt. `loramix explain MIXTURE PROMPT --svg FILE` draws a single prompt.
"""

import argparse
from pathlib import Path

from loramix import MixtureModel
from loramix.mixture.explanation import explain
from loramix.report.routing import RoutedPrompt, routing_svg
from loramix.storage.files import write_text

PROMPTS = (
    "Find all files here that are larger than a megabyte",
    "Two dogs run across the snow. Please say it in German.",
    "Columns: team, city, wins. Which city has the most wins?",
    "cantar: subjunctive, present, first person plural",
)


def main() -> None:
    """Draw the picture that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mixture", type=Path, help="the folder of a mixture")
    parser.add_argument("picture", type=Path, help="the SVG file to write")
    parser.add_argument("prompts", nargs="*", default=PROMPTS, help="instead of those here")
    typed = parser.parse_args()
    mixture = MixtureModel.from_pretrained(typed.mixture)
    explained = [(prompt, explain(mixture, prompt)) for prompt in typed.prompts]
    drawn = [RoutedPrompt(prompt, each.layers, each.mean) for prompt, each in explained]
    for each in drawn:
        weights = zip(mixture.expert_names, each.mean, strict=True)
        print(each.prompt, ", ".join(f"{name} {weight:.3f}" for name, weight in weights), sep=": ")
    typed.picture.parent.mkdir(parents=True, exist_ok=True)
    write_text(typed.picture, routing_svg(mixture.expert_names, drawn))


if __name__ == "__main__":
    main()
