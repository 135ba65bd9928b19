package twin

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// publishLimit is the time of a publish, retries included.
const publishLimit = 10 * time.Second

var (
	errBreakerOpen  = errors.New("the circuit breaker is open")
	producerLatency = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name: "kafka_producer_latency_seconds", Help: "Time until a record is acknowledged.", Buckets: seconds}, []string{"topic"})
	breakerState = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "circuit_breaker_state", Help: "0 closed, 1 half-open, 2 open."}, []string{"name"})
)

// A message is the event of a new order.
type message struct {
	id          uuid.UUID
	payload     []byte
	traceparent string
}

// Topics are the names of the topics, and the types of their events.
type Topics struct{ Created, Processed, Failed, DLQ string }

// A Bus publishes events.
type Bus struct {
	client  *kgo.Client
	topics  Topics
	breaker breaker
}

// OpenBus makes a producer with tbd's guarantees: acknowledged by all replicas in sync, idempotent, no linger. It
// connects when it is used.
func OpenBus(c Config) (*Bus, error) {
	client, err := kgo.NewClient(append(c.kafka(),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(0),
		kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)), // murmur2, as in tbd
		kgo.ProducerBatchCompression(compression(c.String("KAFKA_COMPRESSION", "none"))),
		kgo.RecordDeliveryTimeout(publishLimit),
		kgo.UnknownTopicRetries(-1))...) // a broker may not know a new topic yet; the limit above ends the wait
	breakerState.WithLabelValues("kafka").Set(0)
	return &Bus{client: client, topics: c.topics()}, err
}

func (c Config) topics() Topics {
	return Topics{
		c.String("KAFKA_TOPIC_ORDER_CREATED", "order.created"), c.String("KAFKA_TOPIC_ORDER_PROCESSED", "order.processed"),
		c.String("KAFKA_TOPIC_ORDER_FAILED", "order.failed"), c.String("KAFKA_TOPIC_ORDER_DLQ", "order.dlq"),
	}
}

func (c Config) kafka() []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(strings.Split(c.String("KAFKA_BROKERS", "localhost:9092"), ",")...),
		kgo.ClientID(c.Service), kgo.DialTimeout(2 * time.Second),
	}
}

func compression(name string) kgo.CompressionCodec {
	return map[string]kgo.CompressionCodec{
		"gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	}[name] // the zero value is no compression
}

func (b *Bus) record(topic string, id uuid.UUID, payload []byte, traceparent string) *kgo.Record {
	return &kgo.Record{Topic: topic, Key: []byte(id.String()), Value: payload, Headers: []kgo.RecordHeader{
		{Key: "content-type", Value: []byte("application/cloudevents+json")},
		{Key: "traceparent", Value: []byte(childOf(traceparent))},
	}}
}

// publish sends records and waits for each one's acknowledgement, for publishLimit at most.
func (b *Bus) publish(ctx context.Context, records ...*kgo.Record) []error {
	ctx, cancel := context.WithTimeout(ctx, publishLimit)
	defer cancel()
	begun := time.Now()
	done := make([]chan error, len(records))
	for n, record := range records {
		// Buffered, since a record in flight may be acknowledged after its limit. A full client refuses at once.
		done[n] = make(chan error, 1)
		b.client.TryProduce(context.Background(), record, func(r *kgo.Record, err error) {
			producerLatency.WithLabelValues(r.Topic).Observe(time.Since(begun).Seconds())
			done[n] <- err
		})
	}
	errs := make([]error, len(records))
	for n := range records {
		select {
		case errs[n] = <-done[n]:
		case <-ctx.Done():
			errs[n] = ctx.Err()
		}
	}
	return errs
}

// Publish sends an event, unless too many have failed lately.
func (b *Bus) Publish(ctx context.Context, m message) error {
	if !b.breaker.admits() {
		return errBreakerOpen
	}
	err := b.publish(ctx, b.record(b.topics.Created, m.id, m.payload, m.traceparent))[0]
	b.breaker.ended(err == nil || errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.TopicAuthorizationFailed))
	return err
}

// Prepare creates the topics.
func (b *Bus) Prepare(ctx context.Context, c Config) error {
	admin := kadm.NewClient(b.client)
	partitions, replicas := int32(c.Int("KAFKA_TOPIC_PARTITIONS", 16)), int16(c.Int("KAFKA_TOPIC_REPLICATION", 1))
	created, err := admin.CreateTopics(ctx, partitions, replicas, nil, b.topics.Created, b.topics.Processed, b.topics.Failed, b.topics.DLQ)
	if err != nil {
		return err
	}
	for _, topic := range created {
		if topic.Err != nil && !errors.Is(topic.Err, kerr.TopicAlreadyExists) {
			return topic.Err
		}
	}
	return nil
}

// Check asks a broker for an answer.
func (b *Bus) Check(ctx context.Context) error { return b.client.Ping(ctx) }

// Close sends the remaining records, until ctx is done at most.
func (b *Bus) Close(ctx context.Context) {
	_ = b.client.Flush(ctx)
	b.client.CloseAllowingRebalance()
}

// A breaker refuses for 30 s after 5 failures in a row; then one request probes.
type breaker struct {
	mu       sync.Mutex
	failures int
	until    time.Time
	probing  bool
}

func (b *breaker) admits() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.failures < 5:
		return true
	case b.probing || time.Now().Before(b.until):
		return false
	}
	b.probing = true
	breakerState.WithLabelValues("kafka").Set(1)
	return true
}

func (b *breaker) ended(ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	wasOpen := b.failures >= 5
	switch {
	case ok && (!wasOpen || b.probing):
		b.failures, b.probing = 0, false
		breakerState.WithLabelValues("kafka").Set(0)
	case !ok && (!wasOpen || b.probing):
		if b.failures++; b.failures >= 5 {
			b.until, b.probing = time.Now().Add(30*time.Second), false
			breakerState.WithLabelValues("kafka").Set(2)
		}
	}
}
