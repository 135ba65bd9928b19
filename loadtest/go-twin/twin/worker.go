package twin

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	batchMax  = 500
	batchTime = time.Second
	pause     = time.Second
	// The time of a commit, and of leaving the group: together with an announcement they fit into the shutdown.
	brokerLimit = 5 * time.Second
)

var ordersProcessed = promauto.NewCounterVec(prometheus.CounterOpts{
	Name: "orders_processed_total", Help: "Orders worked on."}, []string{"outcome"})

// A Worker processes orders: several members of the group, each with its own connections.
type Worker struct {
	Store       *Store
	Bus         *Bus
	MaxAttempts int
	Step        time.Duration
	FailureRate float64
}

// Run starts the members, and returns once they have left the group, after ctx is done.
func (w *Worker) Run(ctx context.Context, c Config) error {
	for _, outcome := range []string{"completed", "failed", "canceled", "duplicate"} {
		ordersProcessed.WithLabelValues(outcome)
	}
	session := c.Duration("KAFKA_SESSION_TIMEOUT", "10s")
	var members sync.WaitGroup
	for range c.Int("WORKER_CONCURRENCY", 5) {
		client, err := kgo.NewClient(append(c.kafka(),
			kgo.ConsumerGroup(c.String("KAFKA_CONSUMER_GROUP", "tbd-workers")),
			kgo.ConsumeTopics(w.Bus.topics.Created),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
			kgo.Balancers(kgo.CooperativeStickyBalancer()),
			kgo.SessionTimeout(session), kgo.HeartbeatInterval(session/3),
			kgo.FetchMaxWait(500*time.Millisecond), kgo.MetadataMaxAge(5*time.Second),
			// A partition stays until the batch is worked and its offsets are committed.
			kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll())...)
		if err != nil {
			return err
		}
		members.Go(func() { w.consume(ctx, client) })
	}
	members.Wait()
	return nil
}

func (w *Worker) consume(ctx context.Context, client *kgo.Client) {
	defer func() {
		limited, cancel := context.WithTimeout(context.Background(), brokerLimit)
		defer cancel()
		_ = client.LeaveGroupContext(limited)
		client.CloseAllowingRebalance()
	}()
	most := batchMax
	if w.Step > 0 {
		most = min(batchMax, max(1, int(batchTime/w.Step)))
	}
	for ctx.Err() == nil {
		fetches := client.PollRecords(ctx, most)
		if finished := w.work(ctx, fetches.Records()); len(finished) > 0 {
			limited, cancel := context.WithTimeout(context.Background(), brokerLimit)
			if err := client.CommitRecords(limited, finished...); err != nil {
				slog.Warn("offsets not committed", "error", err)
			}
			cancel()
		}
		client.AllowRebalance()
	}
}

// A task is a record in hand.
type task struct {
	record   *kgo.Record
	id       uuid.UUID
	attempts int
	due      time.Time
	done     bool
	// What to announce once the order has a final status.
	announcements []*kgo.Record
}

// work processes all records, in rounds: one statement claims the orders, one completes them, then they are announced
// together. It returns the records that are done with all records before them; all, unless ctx is done.
func (w *Worker) work(ctx context.Context, records []*kgo.Record) []*kgo.Record {
	tasks := make([]*task, len(records))
	for n, record := range records {
		tasks[n] = &task{record: record}
		var err error
		if tasks[n].id, err = createdOrder(record.Value, w.Bus.topics.Created); err != nil {
			tasks[n].announcements = append(tasks[n].announcements, w.letter(record, err.Error(), 0))
		}
	}
	for ctx.Err() == nil {
		var open []*task
		wake := time.Now().Add(time.Hour)
		for _, t := range tasks {
			if !t.done {
				open = append(open, t)
				if t.due.Before(wake) {
					wake = t.due
				}
			}
		}
		if len(open) == 0 {
			break
		}
		sleep(ctx, time.Until(wake))
		if err := w.process(ctx, open); err != nil {
			slog.Warn("orders not processed, trying again", "count", len(open), "error", err)
			sleep(ctx, pause)
		}
		// Also after the stop: what is completed is announced.
		if err := w.announce(open); err != nil {
			slog.Warn("orders not announced, trying again", "error", err)
			sleep(ctx, pause)
		}
	}
	var finished []*kgo.Record
	blocked := map[int32]bool{}
	for _, t := range tasks {
		if blocked[t.record.Partition] = blocked[t.record.Partition] || !t.done; !blocked[t.record.Partition] {
			finished = append(finished, t.record)
		}
	}
	return finished
}

func (w *Worker) process(ctx context.Context, open []*task) error {
	byID := map[uuid.UUID][]*task{}
	var ids []uuid.UUID
	for _, t := range open {
		if len(t.announcements) > 0 || time.Now().Before(t.due) {
			continue
		}
		if len(byID[t.id]) == 0 {
			ids = append(ids, t.id)
		}
		byID[t.id] = append(byID[t.id], t)
	}
	if len(ids) == 0 {
		return nil
	}
	orders, err := w.Store.Claim(ctx, ids)
	if err != nil {
		return err
	}
	var completed, failed []uuid.UUID
	var reasons []string
	until := time.Now().Add(batchTime)
	for n, id := range ids {
		if ctx.Err() != nil || n > 0 && time.Now().After(until) {
			break
		}
		order, known := orders[id]
		tasks := byID[id]
		switch {
		case !known:
			for _, t := range tasks {
				t.announcements = append(t.announcements, w.letter(t.record, "there is no such order", 0))
			}
		case order.Status == "canceled":
			ordersProcessed.WithLabelValues("canceled").Inc()
			for _, t := range tasks {
				t.done = true
			}
		case order.Status == "completed" || order.Status == "failed":
			ordersProcessed.WithLabelValues("duplicate").Inc()
			w.ended(order.Order, order.reason, w.MaxAttempts, tasks)
		default:
			switch stopped, failure := w.attempt(ctx); {
			case stopped:
			case failure == nil:
				completed = append(completed, id)
			default:
				tasks[0].attempts++
				if tasks[0].attempts < w.MaxAttempts {
					retryLater(tasks)
				} else {
					failed, reasons = append(failed, id), append(reasons, failure.Error())
				}
			}
		}
	}
	return w.store(completed, failed, reasons, byID)
}

// store moves the orders to their final status, also after the stop: the work on them is done.
func (w *Worker) store(completed, failed []uuid.UUID, reasons []string, byID map[uuid.UUID][]*task) error {
	if len(completed) > 0 {
		orders, err := w.Store.Complete(context.Background(), completed)
		if err != nil {
			return err
		}
		for _, order := range orders {
			ordersProcessed.WithLabelValues("completed").Inc()
			slog.Info("order completed", "order_id", order.ID)
			w.ended(order, "", 0, byID[order.ID])
		}
	}
	if len(failed) > 0 {
		orders, err := w.Store.Fail(context.Background(), failed, reasons)
		if err != nil {
			return err
		}
		for _, order := range orders {
			ordersProcessed.WithLabelValues("failed").Inc()
			slog.Warn("order failed", "order_id", order.ID)
			w.ended(order, reasons[slices.Index(failed, order.ID)], w.MaxAttempts, byID[order.ID])
		}
	}
	return nil
}

var backoff = []time.Duration{100 * time.Millisecond, 500 * time.Millisecond, 2 * time.Second}

func retryLater(tasks []*task) {
	attempts := tasks[0].attempts
	for _, t := range tasks {
		t.attempts, t.due = attempts, time.Now().Add(backoff[min(attempts, len(backoff))-1])
	}
}

// attempt is the simulated step of tbd.
func (w *Worker) attempt(ctx context.Context) (stopped bool, failure error) {
	if w.Step > 0 {
		if sleep(ctx, w.Step); ctx.Err() != nil {
			return true, nil
		}
	}
	if w.FailureRate > 0 && rand.Float64() < w.FailureRate {
		return false, fmt.Errorf("simulated failure")
	}
	return false, nil
}

// ended adds the announcements of an order with a final status to its tasks.
func (w *Worker) ended(order Order, reason string, attempts int, tasks []*task) {
	for _, t := range tasks {
		parent := header(t.record, "traceparent")
		topic := w.Bus.topics.Processed
		if order.Status == "failed" {
			topic = w.Bus.topics.Failed
			t.announcements = append(t.announcements, w.letter(t.record, reason, attempts))
		}
		t.announcements = append(t.announcements, w.Bus.record(topic, order.ID, event(order, topic, reason), parent))
	}
}

// announce publishes what is to be announced, and marks the tasks that are done by it.
func (w *Worker) announce(open []*task) error {
	var records []*kgo.Record
	for _, t := range open {
		records = append(records, t.announcements...)
	}
	errs, next := w.Bus.publish(context.Background(), records...), 0
	var failed error
	for _, t := range open {
		if len(t.announcements) == 0 {
			continue
		}
		var rest []*kgo.Record
		for _, record := range t.announcements {
			if errs[next] != nil {
				failed = errs[next]
				again := *record // the client may still hold the first one
				rest = append(rest, &again)
			}
			next++
		}
		t.announcements, t.done = rest, len(rest) == 0
	}
	return failed
}

// letter is the dead letter of a record.
func (w *Worker) letter(record *kgo.Record, reason string, attempts int) *kgo.Record {
	slog.Warn("record goes to the dead-letter topic", "partition", record.Partition, "offset", record.Offset, "reason", reason)
	var headers []kgo.RecordHeader
	for _, h := range record.Headers {
		if h.Key != "traceparent" && h.Key != "tracestate" {
			headers = append(headers, h)
		}
	}
	add := func(name, value string) {
		headers = append(headers, kgo.RecordHeader{Key: name, Value: []byte(value)})
	}
	add("dlq-topic", record.Topic)
	add("dlq-partition", strconv.Itoa(int(record.Partition)))
	add("dlq-offset", strconv.FormatInt(record.Offset, 10))
	add("dlq-reason", reason)
	add("dlq-attempts", strconv.Itoa(attempts))
	add("traceparent", childOf(header(record, "traceparent")))
	return &kgo.Record{Topic: w.Bus.topics.DLQ, Key: record.Key, Value: record.Value, Headers: headers}
}

func header(record *kgo.Record, name string) string {
	for _, h := range record.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}

// sleep waits, until ctx is done at most.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
