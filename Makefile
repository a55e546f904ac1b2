# The two commands of the README stand first: `make repro` and `make test`.
SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
UV_VERSION := 0.13.9

.PHONY: repro
repro: .venv/ready  ## the environment, then the pipeline: whatever params.yaml or the code made stale
	dvc repro
	python -m refit.commands.summary

.PHONY: summary
summary: .venv/ready  ## what the last run gave: data, model, test metrics, report
	@python -m refit.commands.summary

.PHONY: help
help:  ## this list
	@sed -nE 's/^([a-z-]+):.*  ## (.*)/  make \1\t\2/p' Makefile | expand -t 21

.PHONY: test
test: .venv/ready  ## everything CI runs: lint, format, types, then the tests, fast ones first
	ruff check
	ruff format --check
	mypy
	pytest -n auto --dist loadfile

# uv takes the builds that fit one another, checks each file's hash and compiles bytecode
# (without it every process pays some 12 s of imports).
.venv/ready: requirements.lock
	test -x .venv/bin/python || python3 -m venv .venv
	python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	uv pip sync --quiet --python .venv/bin/python --require-hashes --compile-bytecode requirements.lock
	python -m pipelines.tools.offline_plots .venv/dvc_plots.html
	dvc config --local plots.html_template ../.venv/dvc_plots.html
	touch $@

.PHONY: verify
verify: .venv/ready  ## the last commit again from nothing, in a clean folder: is every file what dvc.lock says?
	python -m pipelines.tools.verify

.PHONY: smoke
smoke: .venv/ready  ## every stage of every system on a few batches, in a folder of its own (under a minute)
	@python -m pipelines.tools.smoke

.PHONY: sanity
sanity: .venv/ready  ## can what params.yaml describes learn a few images by heart? If not, why (under a minute)
	@dvc repro --quiet prepare
	@python -m refit.commands.sanity

.PHONY: doctor
doctor: .venv/ready  ## what runs that were cut off left behind, and its removal where nothing is at work
	@python -m pipelines.tools.doctor

.PHONY: bench
bench: .venv/ready  ## the speed of data path, training and pipeline (under ten minutes): benchmarks/results.json, and a table of each
	python -m benchmarks.data_path
	python -m benchmarks.training
	python -m benchmarks.pipeline

.PHONY: lock
lock: .venv/ready  ## requirements.lock anew from pyproject.toml
	uv pip compile pyproject.toml --group dev --universal --generate-hashes --no-emit-index-url --no-annotate --no-header --upgrade -q -o requirements.lock

.PHONY: check-params
check-params: .venv/ready  ## is params.yaml right? Runs nothing else
	python -m stages.check

# Prefect (docs/prefect.md): a server with its UI, a worker and the schedule, each in the folder .prefect/ of this one.
# Another server: set PREFECT_API_URL (and PREFECT_API_AUTH_STRING, where it asks for a password).
PREFECT_SERVER_API_PORT ?= 4200
server worker deploy: export PREFECT_HOME ?= $(CURDIR)/.prefect
ifndef PREFECT_API_URL
worker deploy: export PREFECT_API_URL := http://127.0.0.1:$(PREFECT_SERVER_API_PORT)/api
worker deploy: export PREFECT_API_AUTH_STRING = $(shell cat .prefect/auth)
endif

.PHONY: server
server: .venv/ready .prefect/auth  ## Prefect's server and UI on 127.0.0.1
	@echo "http://127.0.0.1:$(PREFECT_SERVER_API_PORT) asks for this password: $$(cat .prefect/auth)"
	@PREFECT_SERVER_API_AUTH_STRING=$$(cat .prefect/auth) prefect server start --port $(PREFECT_SERVER_API_PORT)

.PHONY: worker
worker: .venv/ready  ## runs in this folder what the server schedules
	prefect worker start --pool refit --type process

.PHONY: deploy
deploy: .venv/ready  ## tells the server of the flows in prefect.yaml and their schedules
	prefect work-pool create refit --type process >/dev/null 2>&1 || prefect work-pool inspect refit >/dev/null
	prefect --no-prompt deploy --all

# Who may use the API may run commands as you: not every user of this machine, and no web page.
.prefect/auth: | .venv/ready
	@umask 077 && mkdir -p $(@D) && python -c "import secrets; print('refit:' + secrets.token_urlsafe())" > $@

.PHONY: mlflow
mlflow: .venv/ready  ## the runs of the local store, at http://127.0.0.1:5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --host 127.0.0.1 --port 5000 --workers 1 --backend-store-uri sqlite:///$(CURDIR)/mlflow.db --artifacts-destination $(CURDIR)/mlruns

.PHONY: register
register: .venv/ready  ## the current model as a new version in MLflow's registry: make register [NAME=refit]
	python -m refit.commands.register $(NAME)

.PHONY: sync
sync: .venv/ready  ## sends MLflow what it missed while it could not be reached
	@python -m refit.commands.sync

.PHONY: promote
promote: .venv/ready  ## the current model as MLflow's champion, if it is good enough beside the one in use
	@python -m refit.commands.promote

.PHONY: versus
versus: .venv/ready  ## is experiment A better than B (or what is here), and what is different? make versus A=NAME [B=NAME]
	@python -m pipelines.tools.versus $(A) $(B)

# dvc exp show has a column for every parameter, metric and hash; here only what differs, and the accuracies. It leaves
# out what a terminal is too narrow for, and that is what was varied: a wide line wraps instead. Where `tested` is not
# `fitted`, as after an experiment of fit alone, the test's accuracy is another model's.
NOT_COMPARED := ^(data|docs|refit|stages)(/|$$)|^params\.yaml$$|^(Created|Executor|train|val|test|skipped|duplicates|left_out_copies|imbalance|epochs?|train_.*|val_loss|learning_rate|accuracy_.*|macro_f1|loss|ece|brier)$$

.PHONY: compare
compare: .venv/ready  ## what differs between the experiments of the last three commits, best test accuracy first
	@COLUMNS=400 dvc exp show --num 3 --no-pager --only-changed --drop '$(NOT_COMPARED)' --keep '^(val_)?accuracy$$' --sort-by data/evaluation/test.json:accuracy --sort-order desc
