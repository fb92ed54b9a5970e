# Everything that can be done here; `make` alone lists it.
VENV   ?= .venv
PYTHON ?= python3
RECIPE ?= smollm2-sentiment
CONFIG ?=
GPUS   ?=
NODES  ?= 1
NODE_RANK ?=
MAIN   ?=
PARTITION ?=
SBATCH ?=
ARGS   ?=
MODEL  ?=
DATASET ?=
DEVICE ?=
PORT   ?=
RUN    ?= outputs/smollm2-sentiment
AGAINST ?=
JUDGE  ?=
JUDGE_MODEL ?=
PROMPTS ?=
RUNS   ?=
SWEEP  ?=
OUTPUT ?=
WANDB  ?=
SUITE  ?=
TRL    ?=
FROM   ?=

BIN      := $(VENV)/bin
READY    := $(VENV)/ready
EXTRA    := $(VENV)/suite
# Two workers, a thread each. ARGS="-n 0" has none, as --pdb needs.
PYTEST   := $(BIN)/python -m pytest --numprocesses 2
EMBEDDED := models/SmolLM2-135M-Instruct/SHA256SUMS

.DEFAULT_GOAL := help
.PHONY: help list install train submit evaluate compare sweep frontier dashboard sync data new shelf bench check-gpu test test-architectures test-distributed test-faults test-sight test-gemma test-trl lint audit clean-cache embedded-data

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 28

list: $(READY) ## the recipes and the configs there are
	@$(BIN)/python scripts/launch.py --list

install: $(READY) ## set up .venv and the embedded model, and check the model's hashes
	$(BIN)/python scripts/embedded_model.py

train: $(READY) $(EMBEDDED) ## train: RECIPE=smollm2-sentiment CONFIG=(by the machine) GPUS=(all) NODES= NODE_RANK= MAIN=host:port ARGS="--beta 0.05"
	@$(BIN)/python scripts/launch.py --recipe "$(RECIPE)" --config "$(CONFIG)" --gpus "$(GPUS)" \
	  --nodes "$(NODES)" --node_rank "$(NODE_RANK)" --main "$(MAIN)" -- $(ARGS)

submit: $(READY) $(EMBEDDED) ## train on a SLURM cluster: NODES=4 GPUS=8 PARTITION= SBATCH="--time=12:00:00" and as train
	@mkdir -p outputs/slurm
	@sbatch --nodes="$(NODES)" $(if $(GPUS),--gpus-per-node=$(GPUS)) $(if $(PARTITION),--partition="$(PARTITION)") \
	  $(SBATCH) scripts/slurm.sh $(BIN)/python "$(RECIPE)" "$(CONFIG)" "$(GPUS)" $(ARGS)
	@echo "Logs: outputs/slurm/<job>.log, and one a machine beside it"

evaluate: $(READY) $(EMBEDDED) $(if $(SUITE),$(EXTRA)) ## did it get better: RUN= AGAINST= JUDGE= JUDGE_MODEL= PROMPTS= SUITE= ARGS="--samples 4"
	@$(BIN)/python scripts/evaluate.py --run "$(RUN)" --against "$(AGAINST)" --judge "$(JUDGE)" \
	  --judge_model "$(JUDGE_MODEL)" --prompts "$(PROMPTS)" --suite "$(SUITE)" $(ARGS)

compare: $(READY) ## runs beside each other: RUNS="outputs/a outputs/b", or RECIPE= for all of its; AGAINST= OUTPUT= WANDB=1
	@$(BIN)/python scripts/compare.py --runs "$(RUNS)" --recipe "$(if $(RUNS),,$(RECIPE))" \
	  --against "$(AGAINST)" $(if $(OUTPUT),--output "$(OUTPUT)") $(if $(WANDB),--wandb) $(ARGS)

sweep: $(READY) $(EMBEDDED) ## a recipe at every point: RECIPE= SWEEP="beta=0.05,0.1 learning_rate=1e-6,5e-7" GPUS=(of each run) CONFIG= OUTPUT= WANDB=1
	@$(BIN)/python scripts/sweep.py --recipe "$(RECIPE)" --sweep "$(SWEEP)" --config "$(CONFIG)" \
	  --gpus "$(GPUS)" --output "$(OUTPUT)" $(if $(WANDB),--wandb) -- $(ARGS)

frontier: $(READY) $(EMBEDDED) ## the paper's reward-KL frontier on the embedded default, an hour: ARGS="--betas 0.05,0.5"
	@$(BIN)/python scripts/frontier.py $(ARGS)

dashboard: $(READY) ## runs live in a page of this machine, without an account: RUNS=outputs PORT=
	@$(BIN)/python scripts/dashboard.py --runs "$(or $(RUNS),outputs)" --port "$(PORT)"

sync: $(READY) ## send to W&B what runs have kept offline: RUN=(all)
	@$(BIN)/python scripts/sync.py --run "$(if $(filter command line,$(origin RUN)),$(RUN))"

data: $(READY) $(EMBEDDED) ## what the model will see of the data: RECIPE= ARGS="--max_length 2048"
	@$(BIN)/python scripts/data.py --config "recipes/$(RECIPE).yaml" $(ARGS)

# RECIPE has a default that is no answer here, and a terminal's width may stand in COLUMNS.
new: $(READY) ## a recipe to start from: RECIPE= MODEL= DATASET= COLUMNS="prompt=question chosen=a rejected=b", or FROM=theirs.yaml GPUS=8
	@$(BIN)/python scripts/new.py --recipe "$(if $(filter file,$(origin RECIPE)),,$(RECIPE))" --model "$(MODEL)" --dataset "$(DATASET)" \
	  $(if $(findstring command,$(origin COLUMNS)),--columns "$(COLUMNS)") $(if $(FROM),--from "$(FROM)" --gpus "$(GPUS)") $(ARGS)

shelf: $(READY) ## write recipes/README.md anew from the recipes' headers
	$(BIN)/python scripts/shelf.py

bench: $(READY) ## how much faster than stock TRL: MODEL=Qwen3-0.6B DEVICE=cuda ARGS="--pairs 8"
	$(BIN)/python scripts/bench.py $(if $(MODEL),--model $(MODEL)) $(if $(DEVICE),--device $(DEVICE)) $(ARGS)

check-gpu: $(READY) $(EMBEDDED) ## everything that only a GPU can show, in under ten minutes: DEVICE=cuda ARGS="--only parity"
	$(BIN)/python scripts/check_gpu.py $(if $(DEVICE),--device $(DEVICE)) $(ARGS)

test: $(READY) $(EMBEDDED) ## run the tests: ARGS="-k recipe" for some of them
	$(PYTEST) --dist loadfile $(ARGS)

test-architectures: $(READY) ## prefix sharing on every architecture of transformers
	$(BIN)/python -m pytest tests/architectures -s $(ARGS)

test-distributed: $(READY) $(EMBEDDED) ## several processes learn what one learns
	$(PYTEST) --dist worksteal tests/distributed $(ARGS)

test-faults: $(READY) $(EMBEDDED) ## runs killed 30 times end as if they had not been: FULL=1 for 80 kills and more
	$(PYTEST) --dist worksteal tests/faults -rP $(ARGS)

test-sight: $(READY) $(EMBEDDED) ## runs evaluated, compared, swept and watched, through make
	$(PYTEST) --dist loadfile tests/make $(ARGS)

test-gemma: $(READY) ## a second real model, Gemma 3 270M, fetched under Gemma's own terms (240 MB)
	$(BIN)/python -m pytest tests/gemma $(ARGS)

test-trl: $(READY) ## TRL's own DPO tests with our trainer, where stock passes: TRL=(a checkout) ARGS="-k iterable"
	$(BIN)/python tests/support/stock_trl.py "$(TRL)" $(ARGS)

lint: $(READY) ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

audit: $(READY) ## known advisories against what is installed
	$(BIN)/python scripts/audit.py

clean-cache: ## forget the log-probabilities, answers and benchmarks that are kept in cache/
	rm -rf cache/reference cache/answers cache/suites

embedded-data: $(READY) $(EMBEDDED) ## rebuild recipes/data/sentiment from its seed (10 minutes): ARGS="--output /some/dir"
	$(BIN)/python scripts/embedded_data.py $(ARGS)

# Made anew when requirements.txt changes. VENV= names another environment, PYTHON= another Python.
# requirements.lock has a hash for every file; torch, a wheel of its own for each machine, comes after.
$(READY): requirements.txt requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: give it with PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	touch $@

# Only where SUITE asks for it.
$(EXTRA): requirements-suite.txt | $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement $< --constraint requirements.txt
	touch $@

$(EMBEDDED): | $(READY)
	$(BIN)/python scripts/embedded_model.py
