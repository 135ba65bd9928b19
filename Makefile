# Entry points of tbd. `make` lists the targets; scripts/ holds their code.
# Set variables on the command line: `make up API=3 WORKERS=3`.

.DEFAULT_GOAL := help
.PHONY: help build up down status logs demo lab certs load bench compare fmt lint test kafka-versions chaos chaos-bugs fuzz chaos-kafka bench-rebalance bench-kafka bench-saga bench-partitions k8s-check k8s-test k8s-certs compose-check compose-test deny check

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 17

build: ## release binaries in target/release
	cargo build --release --locked --package tbd

up: ## everything on this machine, no containers: PostgreSQL, Kafka, api, worker, nginx (variables: scripts/up; TWIN=1 GO=1)
	@scripts/up

down: ## stop it; data stays in STATE_DIR
	@scripts/down

status: ## what runs, and whether it is ready
	@scripts/status

logs: ## follow the logs (SERVICE=api for one)
	@scripts/logs

demo: ## one order's life, through nginx, Kafka and the worker
	@scripts/demo

lab: ## an experiment of docs/labs.md (N=1 to 8; TWIN=1 GO=1; SHORT=1)
	@scripts/lab $(N)

certs: ## a CA and certificates for demonstrations, in .local/certs; again: replace the certificates
	@scripts/certs

load: ## k6 against the running system (SCRIPT, BASE_URL, VUS, DURATION)
	@scripts/load

bench: ## what the system can do on this machine, into loadtest/results (knobs: scripts/bench; SWEEP=1)
	@scripts/bench

compare: ## tbd, the async twin and the Go twin, into loadtest/results/compare.* (SMOKE=1, LONG=1; knobs: scripts/compare)
	@scripts/compare

fmt: ## format the code
	cargo fmt

lint: ## formatting, clippy, shellcheck and compose-check, warnings being errors
	@scripts/lint

compose-check: ## the files of docker-compose.yml and docker/, without containers
	@scripts/compose-check

deny: ## licences, sources and bans of dependencies, if cargo-deny is installed
	@if command -v cargo-deny >/dev/null; then cargo deny check; else \
		echo 'cargo-deny is not installed: cargo install cargo-deny --locked' >&2; exit 1; fi

test: ## every test, with a PostgreSQL and a Kafka of its own
	@scripts/test

kafka-versions: ## the tests that depend most on Kafka, with Kafka 3.9 and 4.4 (VERSIONS="3.8.1 4.3.0" for others)
	@scripts/kafka-versions

chaos: ## customers order while everything fails, and nothing may be lost (SECONDS=300, SEED)
	@TBD_CHAOS_SECONDS=$(or $(SECONDS),300) TBD_CHAOS_SEED=$(SEED) scripts/test --test chaos -- --ignored --nocapture

chaos-bugs: ## plant bugs one after another, and see that chaos finds each (BUGS=name for one)
	@scripts/chaos-bugs $(BUGS)

fuzz: ## fuzz what reads bytes from outside (SECONDS=60 each, TARGET=name for one)
	@scripts/fuzz $(or $(SECONDS),60) $(TARGET)

chaos-kafka: ## the Kafka client while brokers and clients die at random, against the log (SECONDS=600, SEED)
	@KAFKA_CHAOS_SECONDS=$(or $(SECONDS),600) KAFKA_CHAOS_SEED=$(SEED) scripts/test --test kafka -- history:: --nocapture

bench-rebalance: ## how long records wait while a group of fifteen gains and loses members
	@scripts/test --test kafka -- rebalance:: --nocapture

bench-saga: ## what a saga costs next to a single step, into loadtest/results/saga.md (TURNS, BACKLOG, RATE)
	@scripts/bench-saga

bench-partitions: ## orders are partitioned under load, and what that costs, into loadtest/results/partitions.md (ORDERS, RATE, TURNS)
	@scripts/bench-partitions

bench-kafka: ## the Kafka client, librdkafka, franz-go and the Java client (ROUNDS=4), in about ten minutes
	@scripts/bench-kafka

k8s-check: ## docker/k8s against Kubernetes' schemas; asks no cluster
	@scripts/k8s-check

k8s-certs: ## certificates for docker/k8s/overlays/kind-tls, as Secrets of kubectl's cluster
	@scripts/k8s-certs

k8s-test: ## an overlay on kubectl's cluster, while its parts are taken away (OVERLAY=kind-saga, BASE_URL)
	@scripts/k8s-test $(OVERLAY)

compose-test: ## the commands of docs/compose.md, run one after another (ONLY=sagas for one part)
	@scripts/compose-test $(ONLY)

check: lint k8s-check test ## exactly what CI runs
