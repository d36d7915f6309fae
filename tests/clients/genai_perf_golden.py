"""Lets GenAI-Perf 0.0.16 itself (its parser and its exporters, from PyPI) read our raw files, and compares what it writes with ours.

    python3 genai_perf_golden.py TOKENIZER.json DIRECTORY[=METRIC,...] ... [--keep FOLDER]

Each directory is that of a load point written with `--raw-export`. Its JSON must equal ours to the byte up to `input_config`, which echoes
the configuration, and its CSV must equal ours to the byte; except for the metrics named after `=`, which must differ. `--keep` copies what
GenAI-Perf wrote, with our records and raw file, for the golden test of tandem-metrics that needs no PyPI.
Exit code: 0 equal, 1 not, 77 GenAI-Perf could not be installed.
"""

import argparse
import csv
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from client_env import enter

# GenAI-Perf without its dependencies (transformers, perf_analyzer and more, none of which the parser needs), and those that it does need.
enter(
    "genai-perf==0.0.16",
    *["numpy==2.4.6", "rich==15.0.0", "pyyaml==6.0.3", "pandas==3.1.1", "orjson==3.13.0", "tqdm==4.70.1", "pillow==13.0.0"],
    *["soundfile==0.14.0", "tokenizers==0.23.3"],
    without_dependencies=("genai-perf==0.0.16",),
)

os.environ["TQDM_DISABLE"] = "1"

import tokenizers  # noqa: E402  (only importable inside the environment)
from genai_perf.config.input.config_command import ConfigCommand  # noqa: E402
from genai_perf.export_data.csv_exporter import CsvExporter  # noqa: E402
from genai_perf.export_data.exporter_config import ExporterConfig  # noqa: E402
from genai_perf.export_data.json_exporter import JsonExporter  # noqa: E402
from genai_perf.inputs.input_constants import Subcommand  # noqa: E402
from genai_perf.profile_data_parser.llm_profile_data_parser import LLMProfileDataParser  # noqa: E402

JSON, CSV, RAW, RECORDS = "profile_export_genai_perf.json", "profile_export_genai_perf.csv", "profile_export.json", "profile_export.jsonl"


class Tokenizer:
    """What GenAI-Perf's own wrapper does with a tokenizer of `transformers`, which is large, with the library beneath that."""

    def __init__(self, path: str):
        self.inner = tokenizers.Tokenizer.from_file(path)

    def encode(self, text, **_):
        return self.inner.encode(text, add_special_tokens=False).ids

    def __call__(self, texts, **_):
        return {"input_ids": [self.encode(text) for text in texts]}


def configure(ours: dict) -> ConfigCommand:
    """GenAI-Perf's configuration, as far as it decides what is exported, from the one that we echo."""
    goodput = ours["input"]["goodput"]
    config = ConfigCommand({
        "model_names": ours["model_names"],
        "endpoint": {"type": "chat", "streaming": ours["endpoint"]["streaming"], "url": ours["endpoint"]["url"]},
        "perf_analyzer": {"stimulus": ours["perf_analyzer"]["stimulus"]},
        "input": {"goodput": goodput} if goodput else {},
        "output": {"profile_export_file": RAW},
        "tokenizer": {"name": "tok"},
    })
    config.subcommand = Subcommand.PROFILE
    return config


def export(raw: Path, ours: dict, tokenizer: Tokenizer, out: Path) -> None:
    """Writes GenAI-Perf's two files into `out`."""
    goodput = ours["input"]["goodput"] or {}
    parser = LLMProfileDataParser(raw, tokenizer, goodput_constraints=goodput)
    ((mode, level),) = parser.get_profile_load_info()
    stats = parser.get_statistics(mode, level)
    stats.scale_data()
    config = ExporterConfig(
        stats=stats.stats_dict, metrics=stats.metrics, config=configure(ours), extra_inputs={}, session_stats={}, telemetry_stats={},
        perf_analyzer_config=SimpleNamespace(get_artifact_directory=lambda: out))
    JsonExporter(config).export()
    CsvExporter(config).export()


def differing(ours: Path, theirs: Path) -> tuple:
    """Names of the metrics that differ in the JSON and in the CSV, and what else differs."""
    one, two = (json.loads((folder / JSON).read_text(encoding="utf-8")) for folder in (ours, theirs))
    names = {name for name in one.keys() | two.keys() if name != "input_config" and one.get(name) != two.get(name)}
    rows = [[row for row in csv.reader((folder / CSV).read_text(encoding="utf-8").splitlines())] for folder in (ours, theirs)]
    titles = {row[0] for row, other in zip(*rows) if row != other if row}
    named = {name.replace("_", " ") for name in names}
    # A difference beyond two decimals is none in the CSV; one in the CSV that is none in the JSON would be ours alone.
    rest = [f"CSV row {title}" for title in titles if title.split(" (")[0].lower() not in named]
    if not names:
        texts = [(folder / JSON).read_bytes().split(b'"input_config":')[0] for folder in (ours, theirs)]
        if texts[0] != texts[1]:
            rest.append("the bytes of the JSON before input_config")
        if (ours / CSV).read_bytes() != (theirs / CSV).read_bytes():
            rest.append("the bytes of the CSV")
    return names, rest


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("tokenizer")
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    tokenizer, n_bad = Tokenizer(args.tokenizer), 0
    for case in args.cases:
        name, _, allowed = case.partition("=")
        ours = Path(name)
        wanted = {metric for metric in allowed.split(",") if metric}
        with tempfile.TemporaryDirectory() as folder:
            theirs = Path(folder)
            config = json.loads((ours / JSON).read_text(encoding="utf-8"))["input_config"]
            export(ours / RAW, config, tokenizer, theirs)
            names, rest = differing(ours, theirs)
            if args.keep:
                kept = args.keep / ours.parent.name
                kept.mkdir(parents=True, exist_ok=True)
                for source in (ours / RAW, ours / RECORDS, theirs / JSON, theirs / CSV):
                    shutil.copy(source, kept)
            same = names == wanted and not rest
            n_bad += not same
            print(f"{ours.parent.name}: {'as expected' if same else 'NOT as expected'}; differ: {', '.join(sorted(names)) or 'none'}")
            for what in rest:
                print(f"  {what}")
            if not same:
                for folder in (ours, theirs):
                    print(f"  {'ours' if folder == ours else 'GenAI-Perf'}:\n{(folder / CSV).read_text(encoding='utf-8')}")
    return 1 if n_bad else 0


if __name__ == "__main__":
    sys.exit(main())
