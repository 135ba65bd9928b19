package twin

import (
	"context"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/twmb/franz-go/pkg/kgo"
)

// tbd's numbers: src/orders/app/housekeeping.rs says why.
const (
	relayBatch    = 500
	relayInterval = time.Second
	directMinAge  = publishLimit + 2*time.Second
	cleanBatch    = 1000
	cleanGather   = 100 * time.Millisecond
	sweepBatch    = 500
)

var (
	outboxBacklog = promauto.NewGauge(prometheus.GaugeOpts{Name: "outbox_backlog", Help: "Events not yet published."})
	outboxOldest  = promauto.NewGauge(prometheus.GaugeOpts{Name: "outbox_oldest_seconds", Help: "Age of the oldest of them."})
)

// A Delivery brings events from the outbox to the bus: in the request, or by the relay.
type Delivery struct {
	store        *Store
	bus          *Bus
	direct       bool
	acknowledged chan uuid.UUID
	pending      chan struct{}
}

// NewDelivery delivers in the request if direct is set.
func NewDelivery(store *Store, bus *Bus, direct bool) *Delivery {
	return &Delivery{store, bus, direct, make(chan uuid.UUID, 10_000), make(chan struct{}, 1)}
}

// deliver publishes the event, or wakes the relay. A full channel is no error: the relay finds what is left.
func (d *Delivery) deliver(ctx context.Context, m message) error {
	if !d.direct {
		select {
		case d.pending <- struct{}{}:
		default:
		}
		return nil
	}
	if err := d.bus.Publish(ctx, m); err != nil {
		return err
	}
	select {
	case d.acknowledged <- m.id:
	default:
	}
	return nil
}

// Relay publishes what is left in the outbox, until ctx is done.
func (d *Delivery) Relay(ctx context.Context) {
	minAge := time.Duration(0)
	if d.direct {
		minAge = directMinAge
	}
	for ctx.Err() == nil {
		taken, removed, err := d.store.Relay(ctx, relayBatch, minAge, d.publishAll)
		if err != nil {
			slog.Debug("outbox relay", "error", err)
		}
		if rows, oldest, err := d.store.Backlog(ctx); err == nil {
			outboxBacklog.Set(float64(rows))
			outboxOldest.Set(oldest)
		}
		if taken == relayBatch && removed == taken {
			continue
		}
		select {
		case <-ctx.Done():
		case <-d.pending:
		case <-time.After(relayInterval):
		}
	}
}

// publishAll returns the ids of the acknowledged events.
func (d *Delivery) publishAll(messages []message) []uuid.UUID {
	records := make([]*kgo.Record, len(messages))
	for n, m := range messages {
		records[n] = d.bus.record(d.bus.topics.Created, m.id, m.payload, m.traceparent)
	}
	published := []uuid.UUID{}
	for n, err := range d.bus.publish(context.Background(), records...) {
		if err == nil {
			published = append(published, messages[n].id)
		}
	}
	return published
}

// Clean removes acknowledged events from the outbox, many with one statement, until ctx is done.
func (d *Delivery) Clean(ctx context.Context) {
	for {
		var ids []uuid.UUID
		select {
		case id := <-d.acknowledged:
			ids = append(ids, id)
		case <-ctx.Done():
			if len(d.acknowledged) == 0 {
				return
			}
		}
		if len(d.acknowledged) < cleanBatch && ctx.Err() == nil {
			time.Sleep(cleanGather)
		}
	gather:
		for len(ids) < cleanBatch {
			select {
			case id := <-d.acknowledged:
				ids = append(ids, id)
			default:
				break gather
			}
		}
		if err := d.store.Remove(context.Background(), ids); err != nil {
			slog.Warn("outbox cleaner", "rows", len(ids), "error", err)
		}
	}
}

// Sweep deletes expired keys once a minute, until ctx is done.
func (d *Delivery) Sweep(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Minute):
		}
		for swept := int64(sweepBatch); swept == sweepBatch; {
			var err error
			if swept, err = d.store.Sweep(ctx, sweepBatch); err != nil {
				slog.Warn("idempotency sweeper", "error", err)
			}
		}
	}
}
