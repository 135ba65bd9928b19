// The command tbd-worker is the worker in Go.
package main

import (
	"context"
	"time"

	"tbd/go-twin/twin"
)

func main() {
	c := twin.NewConfig("tbd-worker")
	twin.StartLogs(c)
	ctx := twin.StopSignal()
	concurrency := c.Int("WORKER_CONCURRENCY", 5)
	store, err := twin.OpenStore(context.Background(), c, int32(concurrency)+2, false)
	if err != nil {
		twin.Exit(err)
	}
	bus, err := twin.OpenBus(c)
	if err != nil {
		twin.Exit(err)
	}
	worker := &twin.Worker{
		Store: store, Bus: bus, MaxAttempts: c.Int("WORKER_MAX_ATTEMPTS", 3),
		Step: c.Duration("PROCESSING_TIME", "0ms"), FailureRate: c.Float("PROCESSING_FAILURE_RATE", "0"),
	}
	c.Check()
	health := &twin.Health{
		Stopping: func() bool { return ctx.Err() != nil },
		Database: twin.Watch(context.Background(), store.Check),
		Kafka:    twin.Watch(context.Background(), twin.KafkaCheck(bus, c)),
	}
	worked := make(chan error, 1)
	go func() { worked <- worker.Run(ctx, c) }()
	handler := twin.Handler(nil, health, 1)
	if err := twin.Serve(ctx, c, c.String("WORKER_HOST", "0.0.0.0"), c.String("WORKER_PORT", "9091"), handler); err != nil {
		twin.Exit(err)
	}
	if err := <-worked; err != nil {
		twin.Exit(err)
	}
	limited, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	bus.Close(limited)
}
