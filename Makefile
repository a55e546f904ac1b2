# The README's two commands are `make repro` and `make test`; `make help` lists all of them.
SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
UV_VERSION := 0.13.9

.PHONY: repro
repro: .venv/ready  ## install the environment, then run the stale stages of the pipeline
	@python -m pipelines.tools.doctor --records
	dvc repro
	python -m refit.commands.summary

.PHONY: summary
summary: .venv/ready  ## show the result of the last run: data, model, test metrics, report
	@python -m refit.commands.summary

.PHONY: help
help:  ## show this list
	@sed -nE 's/^([a-z-]+):.*  ## (.*)/  make \1\t\2/p' Makefile | expand -t 21

.PHONY: lint
lint: .venv/ready  ## check lint, format and types
	ruff check
	ruff format --check
	mypy

.PHONY: test-fast
test-fast: lint  ## run lint, types and the pure tests, while you work (at most 90 seconds)
	pytest -n auto --dist worksteal tests/unit

.PHONY: test
test: .venv/ready  ## run what CI runs: lint, types and all tests
	@$(MAKE) --no-print-directory --jobs 2 all-tests lint

# The tests of a file share slow fixtures, so they run on one core. The longest files run first (see pyproject.toml), so
# that all cores are busy until the end.
.PHONY: all-tests
all-tests: .venv/ready
	pytest -n auto --dist loadfile --no-loadscope-reorder

# uv installs builds that fit together, checks the hash of each file and compiles bytecode. Without bytecode, every process
# needs about 12 s for its imports.
.venv/ready: requirements.lock
	test -x .venv/bin/python || python3 -m venv .venv
	python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	uv pip sync --quiet --python .venv/bin/python --require-hashes --compile-bytecode requirements.lock
	python -m pipelines.tools.offline_plots .venv/dvc_plots.html
	dvc config --local plots.html_template ../.venv/dvc_plots.html
	touch $@

.PHONY: photos
photos: .venv/ready  ## train a head on pretrained layers for your photos: make photos DATA=FOLDER [WEIGHTS=FILE]
	@python -m pipelines.tools.recipe photos "$(DATA)" $(WEIGHTS)
	@python -m refit.commands.summary

.PHONY: photos-finetune
photos-finetune: .venv/ready  ## fine-tune pretrained layers on them: make photos-finetune DATA=FOLDER [WEIGHTS=FILE]
	@python -m pipelines.tools.recipe photos-finetune "$(DATA)" $(WEIGHTS)
	@python -m refit.commands.summary

.PHONY: verify
verify: .venv/ready  ## run the last commit again in a clean folder, and compare every file with dvc.lock
	python -m pipelines.tools.verify

.PHONY: smoke
smoke: .venv/ready  ## run every stage of every system on a few batches, in a temporary folder (under a minute)
	@python -m pipelines.tools.smoke

.PHONY: sanity
sanity: .venv/ready  ## check that the system in params.yaml can memorise a few images (under a minute)
	@dvc repro --quiet prepare
	@python -m refit.commands.sanity

.PHONY: audit
audit: .venv/ready  ## list near-duplicates and likely label errors with pictures; you decide in data/audit.csv
	@dvc repro --quiet prepare
	@python -m refit.commands.audit

.PHONY: decide
decide: .venv/ready  ## decide with keys about what make audit found, in a page on 127.0.0.1: make decide [PORT=NUMBER]
	@python -m refit.commands.decide $(if $(PORT),--port $(PORT))

.PHONY: doctor
doctor: .venv/ready  ## find what killed runs left behind, and repair it if nothing is running
	@python -m pipelines.tools.doctor

.PHONY: bench
bench: .venv/ready  ## measure data path, training and pipeline (under ten minutes); adds to benchmarks/results.json
	python -m benchmarks.data_path
	python -m benchmarks.training
	python -m benchmarks.pipeline

.PHONY: lock
lock: .venv/ready  ## write requirements.lock anew from pyproject.toml, with the newest versions allowed
	uv pip compile pyproject.toml --group dev --all-extras --universal --generate-hashes --no-emit-index-url --no-annotate --no-header --upgrade -q -o requirements.lock

.PHONY: check-params
check-params: .venv/ready  ## check params.yaml, and run nothing else
	python -m stages.check

# Prefect (docs/prefect.md): a server with its UI, a worker and the schedule, with their data in .prefect/.
# To use another server, set PREFECT_API_URL, and PREFECT_API_AUTH_STRING if it asks for a password.
PREFECT_SERVER_API_PORT ?= 4200
server worker deploy nightly: export PREFECT_HOME ?= $(CURDIR)/.prefect
ifndef PREFECT_API_URL
worker deploy nightly: export PREFECT_API_URL := http://127.0.0.1:$(PREFECT_SERVER_API_PORT)/api
worker deploy nightly: export PREFECT_API_AUTH_STRING = $(shell cat .prefect/auth)
endif

.PHONY: server
server: .venv/ready .prefect/auth  ## start Prefect's server and UI on 127.0.0.1
	@echo "http://127.0.0.1:$(PREFECT_SERVER_API_PORT) asks for this password: $$(cat .prefect/auth)"
	@PREFECT_SERVER_API_AUTH_STRING=$$(cat .prefect/auth) prefect server start --port $(PREFECT_SERVER_API_PORT)

.PHONY: worker
worker: .venv/ready  ## start a worker that runs the scheduled runs in this folder
	prefect worker start --pool refit --type process

.PHONY: deploy
deploy: .venv/ready  ## register the flows and schedules of prefect.yaml with the server
	prefect work-pool create refit --type process >/dev/null 2>&1 || prefect work-pool inspect refit >/dev/null
	@# Prefect's own words are shown after an error only: the commands in them would look for another server.
	@said=$$(prefect --no-prompt deploy --all 2>&1) || { echo "$$said"; exit 1; }
	@echo "registered the deployments of prefect.yaml; they run on schedule while a worker runs: make worker"
	@echo "to start retrain/nightly now: make nightly$(if $(filter-out 4200,$(PREFECT_SERVER_API_PORT)), PREFECT_SERVER_API_PORT=$(PREFECT_SERVER_API_PORT))"

.PHONY: nightly
nightly: .venv/ready  ## start the nightly run now, on the server
	prefect deployment run retrain/nightly

# Whoever can use the API can run commands as you. The password keeps out other users of this machine and web pages.
.prefect/auth: | .venv/ready
	@umask 077 && mkdir -p $(@D) && python -c "import secrets; print('refit:' + secrets.token_urlsafe())" > $@

.PHONY: mlflow
mlflow: .venv/ready  ## start MLflow's UI for the local store at http://127.0.0.1:5000
	@echo "the runs: http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=refit"
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --host 127.0.0.1 --port 5000 --workers 1 --backend-store-uri sqlite:///$(CURDIR)/mlflow.db --artifacts-destination $(CURDIR)/mlruns

.PHONY: register
register: .venv/ready  ## add the current model to MLflow's registry as a new version: make register [NAME=refit]
	python -m refit.commands.register $(NAME)

.PHONY: sync
sync: .venv/ready  ## send MLflow what it missed while it could not be reached
	@python -m refit.commands.sync

.PHONY: promote
promote: .venv/ready  ## make the current model MLflow's champion, if it is good enough compared with the one in use
	@python -m refit.commands.promote

.PHONY: versus
versus: .venv/ready  ## compare experiment A with B, or with the current model: make versus A=NAME [B=NAME]
	@python -m pipelines.tools.versus "$(A)" $(B)

.PHONY: data-diff
data-diff: .venv/ready  ## images added, removed, relabelled or moved since A: make data-diff A=NAME [B=NAME]
	@python -m pipelines.tools.data_diff "$(A)" $(B)

.PHONY: compare
compare: .venv/ready  ## compare the experiments of the last three commits, best validation accuracy first
	@python -m pipelines.tools.compare
