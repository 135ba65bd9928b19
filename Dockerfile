# The programs, one image each: `--target api`, `--target worker` and `--target participant`. The final images hold glibc,
# libgcc, CA certificates, time zones and one program: no shell, no package manager.

FROM rust:1.95.0-slim-bookworm AS build
# A profile of Cargo.toml. dev compiles soonest, for `docker compose watch`.
ARG PROFILE=release
WORKDIR /src

# The dependencies alone, with empty programs: this layer lasts until Cargo.toml or Cargo.lock change.
COPY Cargo.toml Cargo.lock ./
COPY crates/deadline/Cargo.toml crates/deadline/
COPY crates/grpc/Cargo.toml crates/grpc/
COPY crates/grpc-build/Cargo.toml crates/grpc-build/
COPY crates/http/Cargo.toml crates/http/
COPY crates/kafka/Cargo.toml crates/kafka/
COPY crates/postgres/Cargo.toml crates/postgres/
COPY crates/telemetry/Cargo.toml crates/telemetry/
COPY crates/tls/Cargo.toml crates/tls/
COPY crates/testkit/Cargo.toml crates/testkit/
# Members of the workspace, whose manifests must be there; they are not built.
COPY loadtest/async-twin/Cargo.toml loadtest/async-twin/
COPY loadtest/kafka-bench/Cargo.toml loadtest/kafka-bench/
RUN mkdir -p src/bin benches \
    && touch src/lib.rs \
    && for crate in crates/*; do mkdir "$crate/src" && touch "$crate/src/lib.rs"; done \
    && echo 'fn main() {}' | tee src/bin/tbd-api.rs src/bin/tbd-worker.rs src/bin/tbd-participant.rs > benches/hot.rs \
    && cargo build --profile "$PROFILE" --locked --package tbd --bins

# The libraries, with empty programs: this layer lasts until one of them changes. The files come with the dates of the
# checkout, and cargo goes by dates: these are newer than the empty files that they replace.
COPY crates crates
RUN find crates -name '*.rs' -exec touch {} + \
    && cargo build --profile "$PROFILE" --locked --package tbd --bins

COPY migrations migrations
COPY src src
# The profile dev writes to target/debug, every other to the folder of its name.
RUN find src -name '*.rs' -exec touch {} + \
    && cargo build --profile "$PROFILE" --locked --package tbd --bins \
    && mkdir /out \
    && cp target/*/tbd-api target/*/tbd-worker target/*/tbd-participant /out

# The publisher has no tags with versions (docs/compose.md: images).
FROM gcr.io/distroless/cc-debian12:nonroot AS runtime
# SIGTERM goes to the program itself, which is process 1; it takes 30 s at most to stop.
# The program is on the PATH, for `docker compose exec api tbd-api healthcheck` and `... worker tbd-worker dlq list`.
ENV PATH=/usr/local/bin:/usr/bin:/bin
STOPSIGNAL SIGTERM
USER 65532:65532

FROM runtime AS worker
COPY --from=build /out/tbd-worker /usr/local/bin/tbd-worker
EXPOSE 9091
ENTRYPOINT ["/usr/local/bin/tbd-worker"]

FROM runtime AS participant
COPY --from=build /out/tbd-participant /usr/local/bin/tbd-participant
EXPOSE 9092 9093 50052 50053
ENTRYPOINT ["/usr/local/bin/tbd-participant"]

FROM runtime AS api
COPY --from=build /out/tbd-api /usr/local/bin/tbd-api
EXPOSE 8080 50051
ENTRYPOINT ["/usr/local/bin/tbd-api"]
