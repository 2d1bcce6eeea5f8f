"""Train, validate, test, or predict with METER and a token reducer."""

from __future__ import annotations

import sys

USAGE = """usage: python run_experiment.py {fit,validate,test,predict} [options]

  fit       train            python run_experiment.py fit --config experiments/elip_0.7.yaml
  validate  score on val     python run_experiment.py validate --config ... --ckpt_path last
  test      score on test    python run_experiment.py test --config ... --ckpt_path best
  predict   write the answer to each example, and which tokens were kept

options of a command:     python run_experiment.py fit --help
options of a reducer:     python run_experiment.py fit --model.reducer.help=ELIP
resolved configuration:   python run_experiment.py fit --config ... --print_config
"""


def main() -> None:
    """Print the usage, or run the command line."""
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        sys.stdout.write(USAGE)
        return
    try:
        # Imported late, because it takes seconds and the usage should not.
        from elip.training.cli import main as run

        run()
    except KeyboardInterrupt:  # before or after training
        sys.stderr.write("Interrupted.\n")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
