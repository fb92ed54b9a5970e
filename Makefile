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
GPU    ?=
MEMORY ?=
PRICE  ?=
CPU_MEMORY ?=
UTILISATION ?=
JSON   ?=
FORCE  ?=
DEVICE ?=
PORT   ?=
RUN    ?= outputs/smollm2-sentiment
AGAINST ?=
JUDGE  ?=
JUDGE_MODEL ?=
PROMPTS ?=
SAMPLES ?=
PICK   ?=
TO     ?=
PUSH   ?=
HUB    ?=
RUNS   ?=
SWEEP  ?=
ROUNDS ?=
OUTPUT ?=
WANDB  ?=
SUITE  ?=
MERGE  ?=
DTYPE  ?=
QUANT  ?=
GGUF   ?=
FILE   ?=
BY     ?=
SELECT ?=
TRL    ?=
FROM   ?=
WHAT   ?=

BIN      := $(VENV)/bin
PUBLISHED := mt_bench alpaca_eval arena_hard arena_hard_v0.1
READY    := $(VENV)/ready
EXTRA    := $(VENV)/suite
SERVING  := $(VENV)/serve
CONVERTER := $(VENV)/gguf
PIP      := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Two workers, a thread each. ARGS="-n 0" has none, as --pdb needs.
PYTEST   := $(BIN)/python -m pytest --numprocesses 2
# What the sweep over architectures has passed for, by tests/architectures/passed.sha256.
SWEPT    := requirements.txt requirements.lock $(wildcard scripts/dpo/prefix_sharing/*.py tests/architectures/*.py)
EMBEDDED := models/SmolLM2-135M-Instruct/SHA256SUMS
# A flag for a variable that is 1 or 0.
on = $(if $(filter-out 0 1 no yes false true,$($1)),$(error $1=$($1): give 1, or leave it out),$(if $(filter 1 yes true,$($1)),$2))

.DEFAULT_GOAL := help
.PHONY: help list install train reproduce submit evaluate chat serve score plan compare sweep rounds frontier learn dashboard export push sync data new pairs shelf bench check-gpu test test-architectures test-distributed test-faults test-sight test-gemma test-trl lint audit clean-cache embedded-data

##@ Use
help: ## show this
	@awk -F ':.*## ' '/^##@/ {print "\n" substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nARGS="--any_flag value" goes on to what a target runs. Begin with: make data, make train\n\n'

list: $(READY) ## the recipes and the configs there are
	@$(BIN)/python scripts/launch.py --list
	@echo "Next: make data RECIPE=<name>, then make train RECIPE=<name>"

install: $(READY) ## set up .venv and the embedded model, and check the model's hashes
	$(BIN)/python scripts/embedded_model.py
	@echo "Next: make data, then make train"

plan: $(READY) $(EMBEDDED) ## what a recipe needs: GPUS= GPU=A100-80GB (or cpu) MEMORY=80, or of RUN=
	@$(BIN)/python scripts/plan.py $(if $(findstring command,$(origin RUN)),--run "$(RUN)") \
	  --recipe "$(RECIPE)" --gpus "$(GPUS)" --nodes "$(NODES)" \
	  --gpu "$(GPU)" --accelerate_config "$(CONFIG)" --memory "$(MEMORY)" --cpu_memory "$(CPU_MEMORY)" \
	  $(if $(UTILISATION),--utilisation "$(UTILISATION)") $(if $(PRICE),--price "$(PRICE)") \
	  $(call on,JSON,--json) -- $(ARGS)

train: $(READY) $(EMBEDDED) ## train: RECIPE= CONFIG=(by the plan) GPUS=(all) ARGS="--beta 0.05"
	@$(BIN)/python scripts/launch.py --recipe "$(RECIPE)" --accelerate_config "$(CONFIG)" --gpus "$(GPUS)" \
	  $(call on,FORCE,--force) --nodes "$(NODES)" --node_rank "$(NODE_RANK)" --main "$(MAIN)" -- $(ARGS)

reproduce: $(READY) $(EMBEDDED) ## does a recipe come to what its header says? RECIPE= CONFIG= GPUS= ARGS=
	@$(BIN)/python scripts/reproduce.py --recipe "$(RECIPE)" --accelerate_config "$(CONFIG)" --gpus "$(GPUS)" -- $(ARGS)

submit: $(READY) $(EMBEDDED) ## train on a SLURM cluster: NODES=4 GPUS=8 PARTITION= SBATCH= and as train
	@$(BIN)/python scripts/launch.py --check --recipe "$(RECIPE)" --accelerate_config "$(CONFIG)" --gpus "$(GPUS)" \
	  --nodes "$(NODES)" -- $(ARGS)
	@mkdir -p outputs/slurm
	@sbatch --nodes="$(NODES)" $(if $(GPUS),--gpus-per-node=$(GPUS)) $(if $(PARTITION),--partition="$(PARTITION)") \
	  $(SBATCH) scripts/slurm.sh $(BIN)/python "$(RECIPE)" "$(CONFIG)" "$(GPUS)" $(ARGS)
	@echo "Logs: outputs/slurm/<job>.log, and one a machine beside it. Next: squeue --me"

evaluate: $(READY) $(EMBEDDED) $(if $(filter-out $(PUBLISHED),$(SUITE)),$(EXTRA)) ## did the model get better? RUN= AGAINST= JUDGE= PROMPTS= SUITE=
	@$(BIN)/python scripts/evaluate.py --run "$(RUN)" --against "$(AGAINST)" --judge "$(JUDGE)" \
	  --judge_model "$(JUDGE_MODEL)" --prompts "$(PROMPTS)" --suite "$(SUITE)" $(ARGS)

chat: $(READY) $(EMBEDDED) ## talk to a finished run and its reference: RUN= ARGS="--only policy"
	@$(BIN)/python scripts/chat.py --run "$(RUN)" $(ARGS)

serve: $(READY) $(EMBEDDED) $(SERVING) ## an OpenAI-compatible server of a finished run: RUN= PORT=8000
	@$(BIN)/python scripts/serve.py --run "$(RUN)" $(if $(PORT),--port "$(PORT)") $(ARGS)

score: $(READY) $(EMBEDDED) ## the reward a policy implies, of any texts: RUN= FILE= BY= SELECT= TO=
	@$(BIN)/python scripts/score.py --run "$(RUN)" --file "$(FILE)" --to "$(TO)" --by "$(BY)" \
	  $(if $(SELECT),--select "$(SELECT)") $(ARGS)

##@ Data
data: $(READY) $(EMBEDDED) ## what the model will see of the data: RECIPE= ARGS="--max_length 2048"
	@$(BIN)/python scripts/data.py --config "recipes/$(RECIPE).yaml" $(ARGS)

# RECIPE has a default that is no answer here, and a terminal's width may stand in COLUMNS.
new: $(READY) ## a recipe to start from: RECIPE= MODEL= DATASET=, or FROM=theirs.yaml
	@$(BIN)/python scripts/new.py --recipe "$(if $(filter file,$(origin RECIPE)),,$(RECIPE))" --model "$(MODEL)" --dataset "$(DATASET)" \
	  $(if $(findstring command,$(origin COLUMNS)),--columns "$(COLUMNS)") $(if $(FROM),--from "$(FROM)" --gpus "$(GPUS)") $(ARGS)

pairs: $(READY) $(EMBEDDED) ## preferences on your prompts: PROMPTS= MODEL= JUDGE= SAMPLES= PICK= TO=
	@$(BIN)/python scripts/pairs.py --prompts "$(PROMPTS)" --model "$(MODEL)" "$(if $(findstring command,$(origin RUN)),$(RUN))" \
	  --judge "$(JUDGE)" --judge_model "$(JUDGE_MODEL)" --to "$(TO)" --gpus "$(GPUS)" --push "$(PUSH)" \
	  $(if $(SAMPLES),--samples "$(SAMPLES)") $(if $(PICK),--pick "$(PICK)") $(ARGS)

##@ Compare
compare: $(READY) ## runs side by side, seeds together: RUNS="outputs/a outputs/b", or RECIPE=
	@$(BIN)/python scripts/compare.py --runs "$(RUNS)" --recipe "$(if $(RUNS),,$(RECIPE))" \
	  --against "$(AGAINST)" $(if $(OUTPUT),--output "$(OUTPUT)") $(call on,WANDB,--wandb) $(ARGS)

sweep: $(READY) $(EMBEDDED) ## a recipe at every point of a grid: RECIPE= SWEEP="beta=0.05,0.1 seed=1,2"
	@$(BIN)/python scripts/sweep.py --recipe "$(RECIPE)" --sweep "$(SWEEP)" --accelerate_config "$(CONFIG)" \
	  --gpus "$(GPUS)" --output "$(OUTPUT)" $(if $(filter-out 0 false no,$(WANDB)),--wandb $(filter-out 1 true yes,$(WANDB))) -- $(ARGS)

rounds: $(READY) $(EMBEDDED) ## sample, make pairs, train; again: RECIPE= PROMPTS= JUDGE= ROUNDS=3
	@$(BIN)/python scripts/rounds.py --recipe "$(RECIPE)" --prompts "$(PROMPTS)" --judge "$(JUDGE)" --judge_model "$(JUDGE_MODEL)" \
	  --accelerate_config "$(CONFIG)" --gpus "$(GPUS)" --output "$(OUTPUT)" $(if $(ROUNDS),--rounds "$(ROUNDS)") \
	  $(if $(SAMPLES),--samples "$(SAMPLES)") $(if $(PICK),--pick "$(PICK)") $(ARGS)

frontier: $(READY) $(EMBEDDED) ## the paper's reward against KL on the embedded default, an hour
	@$(BIN)/python scripts/frontier.py $(ARGS)

learn: $(READY) $(EMBEDDED) ## experiments that show what DPO does, on the embedded default: WHAT=(all)
	@$(BIN)/python scripts/learn.py --what "$(WHAT)" $(ARGS)

dashboard: $(READY) ## runs live in a page of this machine, without an account: RUNS= PORT=
	@$(BIN)/python scripts/dashboard.py --runs "$(or $(RUNS),outputs)" --port "$(PORT)"

##@ Publish
export: $(READY) $(EMBEDDED) $(if $(GGUF),$(CONVERTER)) ## a run's policy for others: RUN= MERGE=1 DTYPE= QUANT=nf4 GGUF= TO= HUB=
	@$(BIN)/python scripts/export.py --run "$(RUN)" $(call on,MERGE,--merge) --dtype "$(DTYPE)" --quant "$(QUANT)" \
	  --gguf "$(GGUF)" --to "$(TO)" --hub "$(HUB)" $(ARGS)

push: $(READY) ## send a policy and its card to the hub, private: RUN= HUB=org/name
	@$(BIN)/python scripts/push.py --run "$(RUN)" --hub "$(HUB)" $(ARGS)

sync: $(READY) ## send to W&B what runs have kept offline: RUN=(all)
	@$(BIN)/python scripts/sync.py --run "$(if $(filter command line,$(origin RUN)),$(RUN))"

##@ Develop
shelf: $(READY) ## write recipes/README.md anew from the recipes' headers
	$(BIN)/python scripts/shelf.py

bench: $(READY) ## how much faster than stock TRL: MODEL=Qwen3-0.6B DEVICE=cuda
	$(BIN)/python scripts/bench.py $(if $(MODEL),--model $(MODEL)) $(if $(DEVICE),--device $(DEVICE)) $(ARGS)
	@echo "Next: what each row is, in docs/speed.md"

check-gpu: $(READY) $(EMBEDDED) ## everything that only a GPU can show, in a quarter of an hour: DEVICE=
	$(BIN)/python scripts/check_gpu.py $(if $(DEVICE),--device $(DEVICE)) $(ARGS)

test: $(READY) $(EMBEDDED) ## run the tests: ARGS="-k recipe" for some of them
	$(PYTEST) --dist loadfile $(ARGS)

test-architectures: $(READY) ## prefix sharing on every architecture of transformers
	$(BIN)/python -m pytest tests/architectures -s $(ARGS)
	@sha256sum $(SWEPT) > tests/architectures/passed.sha256

test-distributed: $(READY) $(EMBEDDED) ## several processes learn what one learns
	$(PYTEST) --dist worksteal tests/distributed $(ARGS)

test-faults: $(READY) $(EMBEDDED) ## runs killed 30 times end as if they had not been: FULL=1 for 80 and more
	$(PYTEST) --dist worksteal tests/faults -rP $(ARGS)

# In order: the longest file comes first, and what all others look at is run once beside it.
test-sight: $(READY) $(EMBEDDED) ## runs evaluated, compared, swept and watched, through make
	$(PYTEST) --dist loadfile --no-loadscope-reorder tests/make $(ARGS)

test-gemma: $(READY) ## a second real model, Gemma 3 270M, under Gemma's own terms (240 MB)
	$(BIN)/python -m pytest tests/gemma $(ARGS)

test-trl: $(READY) ## TRL's own DPO tests with our trainer: TRL=(a checkout)
	$(BIN)/python tests/support/stock_trl.py "$(TRL)" $(ARGS)

lint: $(READY) ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

audit: $(READY) ## known advisories against what is installed
	$(BIN)/python scripts/audit.py

clean-cache: ## forget what is kept in cache/: log-probabilities, answers, judgements
	rm -rf cache/reference cache/answers cache/judgements cache/suites

embedded-data: $(READY) $(EMBEDDED) ## rebuild recipes/data/sentiment from its seed (10 minutes)
	$(BIN)/python scripts/embedded_data.py $(ARGS)

# Made anew when requirements.txt changes. VENV= names another environment, PYTHON= another Python.
# requirements.lock has a hash for every file; torch, a wheel of its own for each machine, comes after.
$(READY): requirements.txt requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: give it with PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps --require-hashes --requirement requirements.lock
	$(PIP) --requirement requirements.txt
	touch $@

# Only where SUITE asks for it.
$(EXTRA): requirements-suite.txt | $(READY)
	$(PIP) --requirement $< --constraint requirements.txt
	touch $@

# Only for make serve.
$(SERVING): requirements-serve.txt | $(READY)
	$(PIP) --requirement $< --constraint requirements.txt
	touch $@

# Only where GGUF asks for it, and apart: it brings another `gguf`.
$(CONVERTER): requirements-gguf.txt | $(READY)
	$(PIP) --no-deps --require-hashes --target $@ --upgrade --requirement $<
	touch $@

$(EMBEDDED): | $(READY)
	$(BIN)/python scripts/embedded_model.py
