// The command tbd-api is the API in Go.
package main

import (
	"context"
	"sync"
	"time"

	"tbd/go-twin/twin"
)

func main() {
	c := twin.NewConfig("tbd-api")
	twin.StartLogs(c)
	connections, workers, queue := c.Int("DB_MAX_CONNS", 25), c.Int("HTTP_WORKERS", 64), c.Int("HTTP_QUEUE", 1024)
	ttl := c.Duration("IDEMPOTENCY_TTL", "72h")
	stop := twin.StopSignal()
	// What requests need ends after them.
	ctx, end := context.WithCancel(context.Background())
	store, err := twin.OpenStore(ctx, c, int32(connections), c.String("DB_COALESCE", "on") == "on")
	if err != nil {
		twin.Exit(err)
	}
	bus, err := twin.OpenBus(c)
	if err != nil {
		twin.Exit(err)
	}
	c.Check()
	if c.String("AUTO_MIGRATE", "true") == "true" {
		go twin.Migrate(stop, c)
	}
	delivery := twin.NewDelivery(store, bus, c.String("EVENT_DELIVERY", "direct") == "direct")
	var housekeeping sync.WaitGroup
	for _, loop := range []func(context.Context){delivery.Relay, delivery.Clean, delivery.Sweep} {
		housekeeping.Go(func() { loop(ctx) })
	}
	health := &twin.Health{
		Stopping: func() bool { return stop.Err() != nil },
		Database: twin.Watch(ctx, store.Check),
		Kafka:    twin.Watch(ctx, twin.KafkaCheck(bus, c)),
	}
	api := &twin.API{Store: store, Delivery: delivery, TTL: ttl}
	handler := twin.Handler(api, health, workers+queue)
	if err := twin.Serve(stop, c, c.String("API_HOST", "0.0.0.0"), c.String("API_PORT", "8080"), handler); err != nil {
		twin.Exit(err)
	}
	end()
	housekeeping.Wait()
	limited, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	bus.Close(limited)
}
