"""Train members of the family, one or a few at a time: `python -m tabletop.queue [names...]`.

Finished models are left alone, an unfinished one goes on from its checkpoint, and a failure does not
keep the others waiting. Every member is a process of its own, so what is edited meanwhile takes effect.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tabletop.train import CONFIGS, add_places, load_config, up_to_date


def train_all(names: list[str], *, jobs: int = 1, **places: Path | str) -> dict[str, str]:
    """Train the models of these configs, in order.

    Args:
        names: Configs, as `tabletop.train.load_config` takes them.
        jobs: How many train at the same time; the cores are shared out among them.
        places: `runs`, `models`, `validation` and `device`, as `tabletop.train.train` takes them.

    Returns:
        Why each failed model failed, by name; empty if all is well.
    """

    def run(name: str) -> tuple[str, str | None]:
        model = load_config(name)["name"]
        try:
            return model, _train(name, jobs, places)
        except Exception as error:  # whatever it is, the others are still to be trained
            return model, f"{type(error).__name__}: {error}"

    with ThreadPoolExecutor(jobs) as pool:
        return {model: reason for model, reason in pool.map(run, names) if reason is not None}


def _train(name: str, jobs: int, places: dict[str, Path | str]) -> str | None:
    """Train one model in a process of its own; says why if it fails."""
    config = load_config(name)
    if up_to_date(config, places["models"]):
        print(f"{config['name']}: up to date", flush=True)
        return None
    log = places["runs"] / config["name"] / "train.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{config['name']}: training, see {log}", flush=True)
    options = [f"--{key}={value}" for key, value in places.items()]
    threads = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)),
        # on a shared machine, threads that wait in a loop slow each other down several times over
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-m", "tabletop.train", name, *options],
            stdout=file, stderr=subprocess.STDOUT, env=threads | os.environ, check=False,
        )  # fmt: skip
    reason = _reason(done.returncode, log) if done.returncode else None
    print(f"{config['name']}: {'done' if reason is None else f'failed: {reason}'}", flush=True)
    return reason


def _reason(code: int, log: Path) -> str:
    """Why a training ended early: the signal, or the last line it wrote."""
    if code < 0:
        return f"ended by signal {-code}"
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit status {code}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="configs, such as small conv conv-seed1; every file if none is named")
    parser.add_argument("--jobs", type=int, default=1, help="how many train at the same time")
    add_places(parser)
    options = vars(parser.parse_args())
    names = options.pop("names")
    try:
        if options["jobs"] < 1:
            raise ValueError(f"jobs is {options['jobs']}, allowed is 1 or more.")
        names = names or sorted(path.stem for path in CONFIGS.glob("*.yaml"))
        for name in names:
            load_config(name)  # whatever is wrong is said before anything is trained
    except ValueError as error:
        parser.error(str(error))
    failures = train_all(names, **options)
    if failures:
        sys.exit("\n".join(["Not trained:", *(f"  {name}: {why}" for name, why in failures.items())]))


if __name__ == "__main__":
    main()
