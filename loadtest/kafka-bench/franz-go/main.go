// franz-go beside the clients of kafka-bench. It takes the arguments of `kafka-bench one franz-go` and prints the same JSON.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const valueBytes = 200

type measured struct {
	Records    int      `json:"records"`
	Seconds    float64  `json:"seconds"`
	P99        *float64 `json:"p99_ms"`
	CPUSeconds float64  `json:"cpu_seconds"`
	Memory     float64  `json:"memory_mib"`
}

func main() {
	if len(os.Args) < 5 {
		fmt.Fprintln(os.Stderr, "usage: franz-go wait|bulk|each|consume COUNT BROKER TOPIC [CA]")
		os.Exit(2)
	}
	task, count, topic := os.Args[1], must(strconv.Atoi(os.Args[2])), os.Args[4]
	options := []kgo.Opt{kgo.SeedBrokers(os.Args[3])}
	if len(os.Args) > 5 {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(must(os.ReadFile(os.Args[5])))
		options = append(options, kgo.DialTLSConfig(&tls.Config{RootCAs: roots}))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var result measured
	switch task {
	case "wait":
		result = wait(ctx, producer(options, 0), topic, count)
	case "bulk":
		result = bulk(ctx, producer(options, 5*time.Millisecond), topic, count)
	case "each":
		partitioner := kgo.RecordPartitioner(kgo.ManualPartitioner())
		result = bulk(ctx, producer(append(options, partitioner), 5*time.Millisecond), topic, count)
	case "consume":
		result = consume(ctx, options, topic, count)
	default:
		panic("no such task: " + task)
	}
	check(json.NewEncoder(os.Stdout).Encode(result))
}

// Idempotent with acks=all by default. It may hold as many records as librdkafka.
func producer(options []kgo.Opt, linger time.Duration) *kgo.Client {
	return must(kgo.NewClient(append(options, kgo.ProducerLinger(linger), kgo.MaxBufferedRecords(100_000),
		kgo.ProducerBatchCompression(kgo.NoCompression()))...))
}

// A record's value is kafka-bench's. Only the manual partitioner looks at the partition.
func record(topic string, value []byte, partition int) *kgo.Record {
	return &kgo.Record{Topic: topic, Value: value, Partition: int32(partition)}
}

func wait(ctx context.Context, client *kgo.Client, topic string, callers int) measured {
	value := value()
	publish := func() { check(client.ProduceSync(ctx, record(topic, value, 0)).FirstErr()) }
	publish()
	watch, latencies := start(), make([][]time.Duration, callers)
	end := watch.started.Add(time.Duration(must(strconv.Atoi(os.Getenv("DURATION")))) * time.Second)
	var group sync.WaitGroup
	for caller := range callers {
		group.Go(func() {
			var own []time.Duration
			for time.Now().Before(end) {
				started := time.Now()
				publish()
				own = append(own, time.Since(started))
			}
			latencies[caller] = own
		})
	}
	group.Wait()
	all := slices.Concat(latencies...)
	return watch.stop(len(all), all)
}

func bulk(ctx context.Context, client *kgo.Client, topic string, count int) measured {
	value := value()
	check(client.ProduceSync(ctx, record(topic, value, 0)).FirstErr())
	watch, latencies := start(), make([]time.Duration, count)
	for i := range count {
		started := time.Now()
		client.Produce(ctx, record(topic, value, i), func(_ *kgo.Record, err error) {
			check(err)
			latencies[i] = time.Since(started)
		})
	}
	check(client.Flush(ctx))
	return watch.stop(count, latencies)
}

func consume(ctx context.Context, options []kgo.Opt, topic string, count int) measured {
	group, watch := fmt.Sprintf("bench-%d", time.Now().UnixNano()), make(chan stopwatch, 1)
	assigned := func(context.Context, *kgo.Client, map[string][]int32) {
		select {
		case watch <- start():
		default: // a later one
		}
	}
	client := must(kgo.NewClient(append(options, kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.OnPartitionsAssigned(assigned))...))
	records, bytes := 0, 0
	for records < count {
		fetches := client.PollFetches(ctx)
		check(fetches.Err())
		fetches.EachRecord(func(record *kgo.Record) {
			records++
			bytes += len(record.Value)
		})
	}
	if bytes < records*valueBytes {
		panic(fmt.Sprint(bytes, " bytes"))
	}
	return (<-watch).stop(records, nil)
}

// The same bytes as kafka-bench's.
func value() []byte {
	value := make([]byte, valueBytes)
	for i := range value {
		value[i] = 'a' + byte(i*7%26)
	}
	return value
}

type stopwatch struct {
	started time.Time
	cpu     float64
}

func start() stopwatch { return stopwatch{time.Now(), cpuSeconds()} }

// stop takes no latencies of a consumer.
func (s stopwatch) stop(records int, latencies []time.Duration) measured {
	result := measured{Records: records, Seconds: time.Since(s.started).Seconds(), CPUSeconds: cpuSeconds() - s.cpu, Memory: memory()}
	if slices.Sort(latencies); len(latencies) > 0 {
		p99 := latencies[len(latencies)*99/100].Seconds() * 1e3
		result.P99 = &p99
	}
	return result
}

func cpuSeconds() float64 {
	var usage syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}

// The largest resident memory so far. The kernel's ru_maxrss would start with the parent's.
func memory() float64 {
	for line := range bytes.Lines(must(os.ReadFile("/proc/self/status"))) {
		if words := bytes.Fields(line); string(words[0]) == "VmHWM:" {
			return must(strconv.ParseFloat(string(words[1]), 64)) / 1024
		}
	}
	panic("the kernel does not tell the resident memory")
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func must[T any](value T, err error) T {
	check(err)
	return value
}
