"""The command line: arguments -> one function -> text on stdout; the only module that knows of it.

Arrives: the words after `scijepa`. Leaves: the result of one function on stdout, everything else on stderr, and an exit
code: 0; 2 for a mistake of the user or a machine that refuses, one sentence without traceback; 130 when interrupted; 1
for a failure of our own. We decided against doing any work here: each verb reads its arguments, calls the function of
the same name and prints. We decided against a framework too; argparse takes milliseconds, and every import of a verb
waits until that verb is called.
"""

import argparse
import contextlib
import difflib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sciJEPA.errors import UserError
from sciJEPA.terminal import complain, outline, quiet_libraries, to_json, write

EPILOG = """\
A first look:   scijepa demo
Your archive:   scijepa inspect era5.zarr
                scijepa pretrain --config climate-tiny --archive era5.zarr --dry-run
                scijepa pretrain --config climate-tiny --archive era5.zarr --out runs/mine
                scijepa probe runs/mine era5.zarr --lead 1D,3D
"""
CONFIGS_ACTIONS = ("list", "show", "copy")
GOES_ON = {
    "pretrain": "the same command with --resume goes on from the last checkpoint",
    "demo": "the same command goes on where this one stopped",
    "embed": "the same command goes on where this one stopped",
    "prepare": "the same command goes on where this one stopped",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` is the command line without the program's name."""
    options = argparse.Namespace()
    try:
        options = _parse(list(sys.argv[1:] if argv is None else argv))
        # Nothing but the result may reach stdout, whatever a library prints on the way.
        with contextlib.redirect_stdout(sys.stderr), quiet_libraries():
            text = options.run(options)
        return write(text)
    except BaseException as error:
        out = getattr(options, "out", None)
        begun = out is not None and (out.is_dir() or out.with_name(f".{out.name}.partial").is_dir())
        goes_on = GOES_ON.get(options.verb, "") if begun else ""
        return complain(error, out=out, goes_on=goes_on)


def _inspect(options: argparse.Namespace) -> str:
    from sciJEPA.archive import open_archive, open_in_any_order
    from sciJEPA.inspection import format_inspection, inspect

    names = ("storage_options", "group", "missing_chunks", "cadence", "duplicates")
    how = {name: getattr(options, name) for name in names}
    archive = open_archive(open_in_any_order(options.archive, options.variables, **how), variables=options.variables)
    report = inspect(archive, window=options.window)
    return to_json(report) if options.json else format_inspection(report)


def _prepare(options: argparse.Namespace) -> str:
    _check_place(options.out)
    from sciJEPA.prepare import prepare

    names = ("archive", "variables", "start", "stop", "chunk_steps", "memory_mb", "scheduler", "restart")
    archive = prepare(options.dataset, options.out, **{name: getattr(options, name) for name in names})
    if options.json:
        return (options.out / "dataset.json").read_text(encoding="utf-8").rstrip()
    return f"{options.out}: {archive!r}"


def _configs(options: argparse.Namespace) -> str:
    from sciJEPA.config import config_text, list_configs

    if options.action == "show":
        return config_text(options.name).rstrip()
    if options.action == "copy":
        return _copy_config(config_text(options.name), options.folder / f"{options.name}.yaml")
    presets = list_configs()
    width = max(map(len, presets), default=0)
    return "\n".join(f"{name:<{width}}  {comment}".rstrip() for name, comment in presets.items())


def _copy_config(text: str, path: Path) -> str:
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is no folder; create it first, or copy into one that exists, such as '.'.")
    try:
        file = path.open("x")
    except FileExistsError as error:
        raise UserError(f"{path} exists already and is left alone; remove it or choose another folder.") from error
    try:
        with file:
            file.write(text)
    except BaseException:
        path.unlink()
        raise
    return str(path)


def _pretrain(options: argparse.Namespace) -> str:
    from sciJEPA.config import config_to_yaml, load_config

    source = options.config
    if source is None:
        if not (options.resume and options.out):
            raise UserError("pretrain needs --config NAME_OR_FILE; 'scijepa configs' lists the presets.")
        source = options.out / "config.yaml"
        if not source.is_file():
            raise UserError(
                f"there is no {source}, so --resume has no run to go on with; check --out or give --config."
            )
    overrides: dict[str, Any] = dict(options.overrides)
    if options.archive is not None:
        overrides["data.archive"] = json.dumps(options.archive, ensure_ascii=False)  # as YAML, a path like 2020 is text
    if options.seed is not None:
        overrides["seed"] = options.seed
    config = load_config(source, overrides)
    if options.print_config:
        return config_to_yaml(config).rstrip()
    if options.dry_run:
        from sciJEPA.plan import describe_run, estimate_time

        description = describe_run(config)
        time = estimate_time(config, description["flops_total"])
        return to_json({**description, "time": vars(time)}) if options.json else outline({**description, "time": time})
    options.out = options.out or Path("runs") / Path(source).stem
    _check_place(options.out)
    import pandas as pd

    from sciJEPA.pretrain import pretrain
    from sciJEPA.training.course import length_advice

    model = pretrain(config, options.out, resume=options.resume)
    metrics = options.out / "metrics.csv"  # on the node of the first process
    advice = length_advice(pd.read_csv(metrics)) if metrics.is_file() else {}
    if options.json:
        return to_json({"run": str(options.out), "model": str(options.out / "model"), "length": advice})
    return "\n".join([f"{options.out}: {model!r}", *(f"{name or 'length'}: {text}" for name, text in advice.items())])


def _check_place(out: Path) -> None:
    """Refuse, before any work, a place where nothing can be written; whether it exists is for the verb to judge."""
    folder = next(path for path in (out, *out.absolute().parents) if path.exists())
    if folder == out:
        return
    if not folder.is_dir():
        raise UserError(f"cannot write {out}: {folder} is a file and no folder; choose another --out.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {out}: you have no permission to write in {folder}; choose another --out.")


def _embed(options: argparse.Namespace) -> str:
    _check_place(options.out)
    from sciJEPA.hub import load
    from sciJEPA.latents import embed

    model = load(options.model)
    names = ("domain", "encoder", "pooled", "out", "append", "scheduler", "batch_size")
    latents = embed(model, options.archive, **{name: getattr(options, name) for name in names})
    return f"{options.out}: " + ", ".join(f"{dim} {size}" for dim, size in latents.sizes.items())


def _probe(options: argparse.Namespace) -> str:
    if options.out is None and options.model.startswith("hf://"):
        raise UserError("probe needs --out DIR for a model of a hub, since there is no run folder to write into.")
    options.out = options.out or Path(options.model) / "probe"
    _check_place(options.out)
    from sciJEPA.archive import open_archive
    from sciJEPA.panel import probe, units_of
    from sciJEPA.scores import format_table

    names = ("domain", "lead", "controls", "probes", "labels", "out", "seed")
    rows = probe(options.model, options.archive, **{name: getattr(options, name) for name in names})
    if options.json:
        return to_json({"scores": rows.to_dict("records")})
    return format_table(rows, units_of(open_archive(options.archive)))


def _forecast(options: argparse.Namespace) -> str:
    _check_place(options.out)
    from sciJEPA.forecasting.issuing import forecast

    names = ("domain", "init", "lead", "method", "probe", "out", "seed")
    found = forecast(options.model, options.archive, **{name: getattr(options, name) for name in names})
    return f"{options.out}: " + ", ".join(f"{dim} {size}" for dim, size in found.sizes.items())


def _score(options: argparse.Namespace) -> str:
    from sciJEPA.archive import open_archive
    from sciJEPA.forecasting.verification import score
    from sciJEPA.panel import units_of
    from sciJEPA.scores import format_table

    if options.out is not None:
        _check_place(options.out)
    rows = score(options.forecast, options.truth, out=options.out, seed=options.seed)
    if options.json:
        return to_json({"scores": rows.to_dict("records")})
    return format_table(rows, units_of(open_archive(options.truth)))


def _report(options: argparse.Namespace) -> str:
    from sciJEPA.report import report

    return str(report(options.run_folder, out=options.page, archive=options.archive, domain=options.domain))


def _protocol(options: argparse.Namespace) -> str:
    from sciJEPA.judging.protocol_ett import ett_table
    from sciJEPA.judging.protocols import protocol

    if options.out is not None:
        _check_place(options.out)
    own = {"horizons": options.horizon, "look_back": options.look_back, "methods": options.method}
    given = own if options.name == "ett" else {}
    further = {name: value for name, value in given.items() if value is not None}
    rows = protocol(options.name, options.archive, options.run_folder, out=options.out, seed=options.seed, **further)
    if options.json:
        return to_json({"scores": rows.to_dict("records")})
    if options.name == "ett":
        return ett_table(rows)
    return rows.drop(columns=["archive", "seed"]).to_string(index=False, float_format="{:.4f}".format)


def _demo(options: argparse.Namespace) -> str:
    _check_place(options.out)
    from sciJEPA.demo import demo

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        demo(options.out, archive=options.archive, config=options.config)
    return printed.getvalue().rstrip()


def _doctor(options: argparse.Namespace) -> str:
    from sciJEPA.doctor import doctor, format_doctor

    report = doctor()
    return to_json(report) if options.json else format_doctor(report)


# --- arguments


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see '{self.prog} --help'.")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser, verbs = _parsers()
    verb, action = [*(argument for argument in arguments if not argument.startswith("-")), None, None][:2]
    for word, words, what in ((verb, list(verbs), "verb"), (action, CONFIGS_ACTIONS, "action of configs")):
        if word is not None and word not in words and (what == "verb" or verb == "configs"):
            raise UserError(f"there is no {what} '{word}'; {_nearest(word, words)}choose from {', '.join(words)}.")
    overrides: dict[str, str] = {}
    if verb == "pretrain":
        arguments, overrides = _take_overrides(arguments)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise UserError(_unknown(unknown, verb, (verbs[verb] if verb else parser)))
    if verb is None:
        options.run = lambda _: parser.format_help().rstrip()
    return argparse.Namespace(**vars(options), overrides=overrides)


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    """The parser of the whole line, and those of the verbs by name."""
    parser = _Parser(
        prog="scijepa",
        description="JEPA self-supervised learning for scientific archives.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")

    def add(name: str, run: Any, text: str, *, as_json: bool = False) -> Any:
        added = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        added.set_defaults(run=run)
        if as_json:
            added.add_argument("--json", action="store_true", help="print JSON, for a program")
        return added

    verb = add("inspect", _inspect, "what an archive holds, and whether it suits training", as_json=True)
    verb.add_argument("archive", metavar="ARCHIVE", help="path or URL of Zarr, NetCDF, The Well's layout, or a table")
    verb.add_argument("--variables", type=_names, metavar="A,B", help="look at these variables only")
    verb.add_argument("--window", type=_count, default=8, metavar="N", help="time steps of a sample (default: 8)")
    verb.add_argument("--group", metavar="PATH", help="group of the store or file (default: the one with fields)")
    verb.add_argument("--storage-options", type=_json, metavar="JSON", help="for a URL, as fsspec takes them")
    fill = ("refuse", "fill")
    verb.add_argument("--missing-chunks", choices=fill, default="refuse", help="absent chunks with a number to fill")
    verb.add_argument("--cadence", metavar="STEP", help="step of a table's time axis, such as 1h")
    same = ("refuse", "mean", "first", "last")
    verb.add_argument("--duplicates", choices=same, default="refuse", help="a table's rows of one time and station")

    verb = add("prepare", _prepare, "write an archive that is quick to train on, with its statistics", as_json=True)
    verb.epilog = "The same command goes on where a killed one stopped. A name that is no card lists the cards."
    verb.add_argument("dataset", metavar="DATASET", help="name of a card, a dataset.yaml, or an archive of your own")
    verb.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write; must not exist")
    verb.add_argument("--archive", metavar="PATH", help="a copy of the card's dataset, to read in its place")
    verb.add_argument("--variables", type=_names, metavar="A,B", help="take these (default: the card's, or all)")
    verb.add_argument("--start", metavar="DATE", help="first date to take")
    verb.add_argument("--stop", metavar="DATE", help="last date to take; 2018 means until its end")
    verb.add_argument("--chunk-steps", type=_count, metavar="N", help="time steps in a chunk (default: about 4 MB)")
    verb.add_argument("--memory-mb", type=_count, default=512, metavar="N", help="memory for data (default: 512)")
    verb.add_argument("--scheduler", metavar="ADDRESS", help="Dask cluster, as tcp://HOST:8786 (default: threads)")
    verb.add_argument("--restart", action="store_true", help="throw away what an unfinished run has written")

    verb = add("configs", _configs, "list the presets, show one, or copy one to change it")
    actions = verb.add_subparsers(dest="action", metavar="list | show NAME | copy NAME DIR")
    actions.add_parser("list", help="names and what they are for (the default)", allow_abbrev=False)
    action = actions.add_parser("show", help="print a preset", allow_abbrev=False)
    action.add_argument("name", metavar="NAME")
    action = actions.add_parser("copy", help="write a preset into a folder", allow_abbrev=False)
    action.add_argument("name", metavar="NAME")
    action.add_argument("folder", metavar="DIR", type=Path)

    verb = add("pretrain", _pretrain, "pretrain an encoder on an archive, without labels", as_json=True)
    verb.epilog = "Every key of the configuration is an option too: --training.steps 100 or --training.steps=100."
    verb.add_argument("--config", metavar="NAME_OR_FILE", help="a preset (see 'scijepa configs') or a YAML file")
    verb.add_argument("--archive", metavar="PATH", help="short for --data.archive")
    verb.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME)")
    verb.add_argument("--seed", type=int, metavar="N", help="seed of weights, order and masks")
    verb.add_argument("--dry-run", action="store_true", help="say what would be done, and what it would cost")
    verb.add_argument("--print-config", action="store_true", help="print the whole configuration")
    verb.add_argument("--resume", action="store_true", help="go on from the last checkpoint; --out DIR is enough")

    verb = add("embed", _embed, "write the latents of an archive")
    _add_model_and_archive(verb)
    verb.epilog = "The same command goes on where a killed one stopped."
    verb.add_argument("--out", required=True, type=Path, metavar="LATENTS.zarr", help="store to write; must not exist")
    verb.add_argument("--append", action="store_true", help="add the times that LATENTS.zarr lacks, if it exists")
    verb.add_argument("--encoder", choices=("target", "online"), help="which one (default: target; online for salt)")
    verb.add_argument("--pooled", action="store_true", help="the mean over tokens, weighted by area and observed share")
    verb.add_argument("--scheduler", metavar="ADDRESS", help="Dask cluster, as tcp://HOST:8786 (default: this process)")
    verb.add_argument("--batch-size", type=_count, metavar="N", help="windows at a time (default: at most 64, by size)")

    verb = add("probe", _probe, "score what the latents know, beside the controls", as_json=True)
    _add_model_and_archive(verb)
    verb.add_argument("--lead", type=_names, metavar="1D,3D", help="how far ahead (default: the run's own)")
    verb.add_argument(
        "--controls", type=_names, default=["all"], metavar="all|quick|A,B", help="quick trains none (default: all)"
    )
    verb.add_argument("--probe", dest="probes", type=_names, metavar="ridge,local,knn,attentive,mlp",
                      help="probes on latents (default: ridge, and local where places have neighbours)")  # fmt: skip
    verb.add_argument("--labels", type=_shares, default=[1.0], metavar="0.01,0.1,1", help="shares of training labels")
    verb.add_argument("--out", type=Path, metavar="DIR", help="folder of the scores (default: RUN/probe)")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="seed of what is trained here (default: 0)")

    verb = add("forecast", _forecast, "write forecasts in the layout of WeatherBench 2")
    _add_model_and_archive(verb)
    verb.add_argument("--init", type=_names, metavar="DATE|A/B", help="issue times, latest or test (default: test)")
    verb.add_argument("--lead", type=_names, metavar="1D,3D", help="how far ahead (default: 1, 2, 3 and 5 steps)")
    verb.add_argument(
        "--method", metavar="NAME", help="a method of the panel (default: jepa_target; jepa_online for salt)"
    )
    verb.add_argument("--probe", default="ridge", metavar="KIND", help="ridge, knn, attentive or mlp (default: ridge)")
    verb.add_argument("--out", required=True, type=Path, metavar="FORECAST.zarr", help="store to write; must not exist")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="seed of what is trained here (default: 0)")

    verb = add("score", _score, "score a forecast beside persistence and climatology", as_json=True)
    verb.add_argument("forecast", metavar="FORECAST.zarr", help="forecast in the layout of WeatherBench 2")
    verb.add_argument("--truth", required=True, metavar="ARCHIVE", help="the archive that came true")
    verb.add_argument("--out", type=Path, metavar="SCORES.csv", help="file to write; must not exist")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the intervals (default: 0)")

    verb = add("report", _report, "one HTML page of a run: data, model, training, skill, maps")
    verb.add_argument("run_folder", metavar="RUN", help="folder of a finished run, with or without a probe")
    verb.add_argument("--out", dest="page", type=Path, metavar="FILE", help="the page (default: RUN/report.html)")
    verb.add_argument("--archive", metavar="PATH", help="the run's archive, where it has moved since")
    verb.add_argument("--domain", metavar="NAME", help="one domain of a joint model (default: all)")

    verb = add("protocol", _protocol, "a published protocol: ett, weatherbench or well", as_json=True)
    verb.add_argument("name", choices=("ett", "weatherbench", "well"), metavar="NAME", help="ett, weatherbench or well")
    verb.add_argument("archive", metavar="ARCHIVE", help="the archive that the protocol is about")
    verb.add_argument("--run", dest="run_folder", metavar="RUN", help="folder of a run to judge (ett works without)")
    verb.add_argument("--horizon", type=_counts, metavar="96,720", help="of ett: rows ahead (default: all six)")
    verb.add_argument("--look-back", type=_count, metavar="N", help="of ett: rows the raw ridge sees (default: 512)")
    verb.add_argument("--method", type=_names, metavar="NAME,NAME", help="of ett: which methods (default: all)")
    verb.add_argument("--out", type=Path, metavar="SCORES.csv", help="file to write")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the intervals (default: 0)")

    verb = add("demo", _demo, "the whole path on a small archive: simulate, pretrain, embed, probe")
    verb.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: runs/demo")
    verb.add_argument("--archive", metavar="PATH", help="an archive of your own in place of the simulated one")
    verb.add_argument("--config", default="demo", metavar="NAME_OR_FILE", help="preset or YAML file (default: demo)")

    add("doctor", _doctor, "versions, devices, engines and extras of this installation", as_json=True)
    return parser, verbs.choices


def _add_model_and_archive(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="RUN", help="folder of a run, or of a model, or hf://org/name")
    verb.add_argument("archive", metavar="ARCHIVE", help="path or URL, of the kind and units that the run has seen")
    verb.add_argument("--domain", metavar="NAME", help="which domain of a joint model (default: the one that fits)")


class _Version(argparse.Action):
    """Print the version; reading it costs an import, so it waits until it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from sciJEPA import __version__

        print(f"scijepa {__version__}")
        parser.exit()


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("needs a name or several with commas between them")
    return names


def _json(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"needs JSON such as '{{\"anon\": true}}', got '{text}'") from error
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError(f"needs a JSON object such as '{{\"anon\": true}}', got '{text}'")
    return options


def _shares(text: str) -> list[float]:
    try:
        return [float(share) for share in _names(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"needs shares such as 0.01,0.1,1, got '{text}'") from error


def _count(text: str) -> int:
    if not text.strip().lstrip("-").isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"needs a whole number of at least 1, got '{text}'")
    return int(text)


def _counts(text: str) -> list[int]:
    return [_count(part) for part in _names(text)]


def _take_overrides(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Separate --a.b VALUE and --a.b=VALUE from the arguments that argparse knows."""
    rest: list[str] = []
    overrides: dict[str, str] = {}
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or "." not in name:
            rest.append(argument)
            continue
        if not equals:
            value = next(waiting, "--")
            if value.startswith("--"):
                raise UserError(f"--{name} needs a value: --{name} VALUE or --{name}=VALUE.")
        overrides[name] = value
    return rest, overrides


def _unknown(unknown: Sequence[str], verb: str | None, parser: argparse.ArgumentParser) -> str:
    """What to say about arguments that nobody asked for."""
    first = next((argument for argument in unknown if argument.startswith("-")), unknown[0])
    name = first.partition("=")[0]
    who = f"scijepa {verb}" if verb else "scijepa"
    if not name.startswith("-"):
        return f"{who} does not take the further argument '{name}'; see '{who} --help'."
    known = [text for action in parser._actions for text in action.option_strings]
    if verb == "pretrain":
        from sciJEPA.config import RunConfig, config_to_dict

        known += [f"--{key}" for key in _dotted(config_to_dict(RunConfig())) if "." in key]
    return f"{who} has no option {name}; {_nearest(name, known)}see '{who} --help'."


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _nearest(name: str, names: Sequence[str] | Mapping[str, Any]) -> str:
    """A question that names the nearest of the names, or the one whose last part it is; empty where none is near."""
    by_last_part = {full.rpartition(".")[2].lstrip("-"): full for full in reversed(list(names))}
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.7)
    last = difflib.get_close_matches(name.lstrip("-").rpartition(".")[2], list(by_last_part), n=1, cutoff=0.6)
    guess = close or [by_last_part[part] for part in last]
    return f"did you mean '{guess[0]}'? " if guess else ""


if __name__ == "__main__":
    sys.exit(main())
