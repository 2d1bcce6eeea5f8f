# On a fresh machine, `make demo` and `make test` set up everything they need.

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
export HF_HUB_OFFLINE := 1
# Two threads that spin while they wait are slower than one on a busy machine.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test slow lowest lint results clean

demo: $(VENV)/ready  ## train METER with ELIP at keep ratio 0.7 on the built-in data, then test it
	$(RUN) run_experiment.py fit --config experiments/elip_0.7.yaml
	$(RUN) run_experiment.py test --config experiments/elip_0.7.yaml --ckpt_path best

test: $(VENV)/ready  ## the default tests, a few minutes on two cores
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2

slow: $(VENV)/ready  ## the slow tests: kills, several processes, real grids, SLURM, notebooks
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -m slow -n 2 --dist loadfile

lowest:  ## the default tests with the lowest versions that pyproject.toml allows
	$(PYTHON) -m venv build/lowest
	build/lowest/bin/pip install --quiet uv
	build/lowest/bin/uv pip install --quiet --python build/lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	OMP_NUM_THREADS=1 build/lowest/bin/python -m pytest -W ignore::DeprecationWarning -W ignore::FutureWarning

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

results: $(VENV)/ready  ## renew the stored study, its notebook pages and figure from runs/offtheshelf
	$(RUN) -m experiments.results runs/offtheshelf --out docs/results/offtheshelf.parquet
	$(RUN) -m analysis docs/results/offtheshelf.parquet --out runs/report --against ELIP
	$(RUN) -m nbconvert --execute --to markdown --output-dir docs/notebooks notebooks/*.ipynb
	perl -0pi -e 's/<style scoped>.*?<.style>\n//gs' docs/notebooks/*.md  # GitHub would show it as text
	cp docs/notebooks/accuracy_vs_gflops_files/accuracy_vs_gflops_6_0.png docs/figures/accuracy_vs_gflops.png

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[dev,slurm]'
	touch $@

clean:
	rm -rf $(VENV) runs data build *.egg-info
