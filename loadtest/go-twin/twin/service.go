// Package twin is tbd's api and worker in idiomatic Go: net/http, pgx and franz-go.
package twin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/golang-migrate/migrate/v4"
	_ "github.com/golang-migrate/migrate/v4/database/pgx/v5" // the driver pgx5
	_ "github.com/golang-migrate/migrate/v4/source/file"     // the source file
)

// shutdownLimit is the time of an orderly end.
const shutdownLimit = 28 * time.Second

// A Config reads tbd's variables. It collects what is wrong with them; Check ends the program over it.
type Config struct {
	Service string
	wrong   *[]string
}

// NewConfig reads for the service of this name.
func NewConfig(service string) Config { return Config{service, &[]string{}} }

// String returns a variable, or fallback if it is unset or empty.
func (c Config) String(name, fallback string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return fallback
}

func parsed[T any](c Config, name, fallback string, parse func(string) (T, error)) T {
	value, err := parse(c.String(name, fallback))
	if err != nil {
		*c.wrong = append(*c.wrong, fmt.Sprintf("%s: %v", name, err))
	}
	return value
}

// Int returns a whole number.
func (c Config) Int(name string, fallback int) int {
	return parsed(c, name, strconv.Itoa(fallback), strconv.Atoi)
}

// Float returns a number.
func (c Config) Float(name, fallback string) float64 {
	return parsed(c, name, fallback, func(text string) (float64, error) { return strconv.ParseFloat(text, 64) })
}

// Duration returns a duration such as 250ms.
func (c Config) Duration(name, fallback string) time.Duration {
	return parsed(c, name, fallback, time.ParseDuration)
}

// Check ends the program with exit code 2 if a value was wrong.
func (c Config) Check() {
	if len(*c.wrong) > 0 {
		fmt.Fprintln(os.Stderr, strings.Join(*c.wrong, "\n"))
		os.Exit(2)
	}
}

// StartLogs writes one JSON object a line, with tbd's names.
func StartLogs(c Config) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.String("LOG_LEVEL", "info"))); err != nil {
		*c.wrong = append(*c.wrong, "LOG_LEVEL: "+err.Error())
	}
	names := map[string]string{slog.TimeKey: "timestamp", slog.MessageKey: "message"}
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if name, there := names[a.Key]; there && len(groups) == 0 {
			a.Key = name
		}
		return a
	}}
	attributes := []slog.Attr{slog.String("service", c.Service), slog.String("target", "twin")}
	slog.SetDefault(slog.New(tracedLogs{slog.NewJSONHandler(os.Stderr, options).WithAttrs(attributes)}))
}

type tracedLogs struct{ slog.Handler }

func (h tracedLogs) Handle(ctx context.Context, r slog.Record) error {
	if t := traceOf(ctx); t.id != "" {
		r.AddAttrs(slog.String("trace_id", t.id), slog.String("span_id", t.span))
	}
	return h.Handler.Handle(ctx, r)
}

// A trace's ids. The twin passes them on, and exports no spans.
type trace struct{ id, span, flags string }

type traceKey struct{}

var traceparent = regexp.MustCompile(`^00-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})$`)

func newTrace(parent string) trace {
	span := fmt.Sprintf("%016x", rand.Uint64())
	if found := traceparent.FindStringSubmatch(parent); found != nil {
		return trace{found[1], span, found[2]}
	}
	return trace{fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64()), span, "00"}
}

func (t trace) parent() string { return "00-" + t.id + "-" + t.span + "-" + t.flags }

// childOf names a new span of the parent's trace.
func childOf(parent string) string { return newTrace(parent).parent() }

func withTrace(r *http.Request) (*http.Request, trace) {
	t := newTrace(r.Header.Get("traceparent"))
	return r.WithContext(context.WithValue(r.Context(), traceKey{}, t)), t
}

func traceOf(ctx context.Context) trace {
	t, _ := ctx.Value(traceKey{}).(trace)
	return t
}

// A Monitor asks a server every second how it is.
type Monitor struct{ word atomic.Pointer[string] }

// Watch starts a monitor that ends with ctx.
func Watch(ctx context.Context, check func(context.Context) error) *Monitor {
	m := &Monitor{}
	word := "not checked yet"
	m.word.Store(&word)
	go func() {
		for ctx.Err() == nil {
			limited, cancel := context.WithTimeout(ctx, 3*time.Second)
			word := "ok"
			if err := check(limited); err != nil {
				slog.Debug("health", "error", err)
				word = "unavailable"
			}
			cancel()
			m.word.Store(&word)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}()
	return m
}

// Word is ok, or what is wrong.
func (m *Monitor) Word() string { return *m.word.Load() }

// KafkaCheck creates the topics once, and asks a broker each time.
func KafkaCheck(bus *Bus, c Config) func(context.Context) error {
	prepared := false
	return func(ctx context.Context) error {
		if !prepared {
			if err := bus.Prepare(ctx, c); err != nil {
				return err
			}
			prepared = true
		}
		return bus.Check(ctx)
	}
}

// Migrate runs tbd's migrations, as soon as there is a database; an error in them ends the program. Without
// MIGRATIONS_DIR they are those of the checkout that this program was compiled in.
func Migrate(ctx context.Context, c Config) {
	_, file, _, _ := runtime.Caller(0)
	folder := c.String("MIGRATIONS_DIR", filepath.Join(filepath.Dir(file), "../../../migrations"))
	database := strings.Replace(c.databaseURL(), "postgres:", "pgx5:", 1)
	for ctx.Err() == nil {
		migrator, err := migrate.New("file://"+folder, database)
		if err == nil {
			err = migrator.Up()
			_, _ = migrator.Close()
			if err == nil || errors.Is(err, migrate.ErrNoChange) || errors.Is(err, os.ErrNotExist) { // the last: a newer schema
				return
			}
			if !isUnavailable(err) {
				slog.Error("the migrations failed", "error", err)
				os.Exit(1)
			}
		}
		slog.Debug("migrations", "error", err)
		time.Sleep(time.Second)
	}
}

// Serve answers until ctx is done. Then it is not ready, accepts for SHUTDOWN_DRAIN, and ends what is under way.
func Serve(ctx context.Context, c Config, host, port string, h http.Handler) error {
	server := &http.Server{
		Handler: h, ReadTimeout: requestLimit, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return err
	}
	slog.Info("listening on " + listener.Addr().String())
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	time.Sleep(c.Duration("SHUTDOWN_DRAIN", "0s"))
	limited, cancel := context.WithTimeout(context.Background(), shutdownLimit)
	defer cancel()
	_ = server.Shutdown(limited)
	return nil
}

// StopSignal is done on SIGTERM or SIGINT; a second signal, or the end of the time, ends the process.
func StopSignal() context.Context {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		<-signals
		slog.Info("stopping; a second signal ends the process at once")
		stop()
		select {
		case <-signals:
		case <-time.After(shutdownLimit + 2*time.Second):
			slog.Error("not everything ended in time, ending anyway")
		}
		os.Exit(1)
	}()
	return ctx
}

// Exit reports an error that ends the program.
func Exit(err error) {
	slog.Error(err.Error())
	os.Exit(1)
}
