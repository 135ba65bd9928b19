package twin

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/common/expfmt"
)

const (
	requestLimit = 30 * time.Second
	bodyMax      = 64 * 1024
)

var (
	seconds         = []float64{.00025, .0005, .001, .002, .005, .01, .02, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
	requestDuration = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name: "http_request_duration_seconds", Help: "Time of a request.", Buckets: seconds}, []string{"method", "route", "status"})
	requestsTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "http_requests_total", Help: "Requests answered."}, []string{"method", "route", "status"})
	ordersCreated   = promauto.NewCounter(prometheus.CounterOpts{Name: "orders_created_total", Help: "Accepted orders."})
	idempotencyHits = promauto.NewCounter(prometheus.CounterOpts{Name: "idempotency_hits_total", Help: "Replayed answers."})
)

// A problem is an answer that is an error (RFC 9457).
type problem struct {
	Type    string       `json:"type"`
	Title   string       `json:"title"`
	Status  int          `json:"status"`
	Detail  string       `json:"detail"`
	Errors  []fieldError `json:"errors,omitempty"`
	TraceID string       `json:"trace_id"`
	SpanID  string       `json:"span_id"`
	headers map[string]string
}

func newProblem(status int, slug, title, detail string) *problem {
	p := &problem{Type: "urn:tbd:problem:" + slug, Title: title, Status: status, Detail: detail, headers: map[string]string{}}
	if status == 503 || slug == "idempotency-key-in-progress" {
		p.headers["Retry-After"] = "1"
	}
	return p
}

func invalid(faults []fieldError) *problem {
	p := newProblem(400, "validation-failed", "Validation Failed", "The request is not valid; see errors.")
	p.Errors = faults
	return p
}

func storeProblem(err error) *problem {
	if errors.Is(err, errNotFound) {
		return newProblem(404, "order-not-found", "Order Not Found", "There is no order with this id.")
	}
	if isUnavailable(err) {
		slog.Warn("the store is not available", "error", err)
		return newProblem(503, "dependency-unavailable", "Service Unavailable", "The database is not available. Try again.")
	}
	slog.Error("the store failed", "error", err)
	return newProblem(500, "internal-error", "Internal error", "Something went wrong on our side.")
}

// A handler either answers or returns a problem.
type handler func(http.ResponseWriter, *http.Request) *problem

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if p := h(w, r); p != nil {
		p.write(w, r)
	}
}

func (p *problem) write(w http.ResponseWriter, r *http.Request) {
	trace := traceOf(r.Context())
	p.TraceID, p.SpanID = trace.id, trace.span
	for name, value := range p.headers {
		w.Header().Set(name, value)
	}
	write(w, p.Status, "application/problem+json", encode(p))
}

func write(w http.ResponseWriter, status int, mediaType string, body []byte) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// Handler routes requests; api is nil in the worker. At most places requests are under way, probes apart.
func Handler(api *API, health *Health, places int) http.Handler {
	mux := http.NewServeMux()
	allow := func(path, methods string) {
		mux.Handle(path, handler(func(http.ResponseWriter, *http.Request) *problem {
			p := newProblem(405, "method-not-allowed", "Method not allowed", "This path answers "+methods+".")
			p.headers["Allow"] = methods
			return p
		}))
	}
	probe := func(path string, h http.HandlerFunc) {
		mux.HandleFunc("GET "+path, h)
		allow(path, "GET, HEAD")
	}
	probe("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		write(w, 200, "application/json", []byte(`{"status":"ok"}`))
	})
	probe("/readyz", health.ServeHTTP)
	probe("/metrics", scrape)
	if api != nil {
		limited := limit(places)
		mux.Handle("POST /v1/orders", limited(api.create))
		mux.Handle("GET /v1/orders", limited(api.list))
		mux.Handle("GET /v1/orders/{id}", limited(api.get))
		mux.Handle("POST /v1/orders/{id}/cancel", limited(api.cancel))
		allow("/v1/orders", "GET, HEAD, POST")
		allow("/v1/orders/{id}", "GET, HEAD")
		allow("/v1/orders/{id}/cancel", "POST")
	}
	mux.Handle("/", handler(func(http.ResponseWriter, *http.Request) *problem {
		return newProblem(404, "not-found", "Not found", "Nothing is at this path.")
	}))
	return observe(mux)
}

// scrape writes the metrics with their length, which promhttp leaves out.
func scrape(w http.ResponseWriter, _ *http.Request) {
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		slog.Warn("metrics", "error", err)
	}
	var text bytes.Buffer
	for _, family := range families {
		_, _ = expfmt.MetricFamilyToText(&text, family)
	}
	write(w, http.StatusOK, string(expfmt.NewFormat(expfmt.TypeTextPlain)), text.Bytes())
}

// limit refuses what exceeds the places: goroutines themselves do not run out.
func limit(places int) func(handler) http.Handler {
	free := make(chan struct{}, places)
	return func(h handler) http.Handler {
		return handler(func(w http.ResponseWriter, r *http.Request) *problem {
			select {
			case free <- struct{}{}:
				defer func() { <-free }()
				return h(w, r)
			default:
				return newProblem(503, "overloaded", "Overloaded", "More requests are waiting than can be answered in time.")
			}
		})
	}
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// observe gives every request a trace, an id, metrics and a log line.
func observe(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun := time.Now()
		r, trace := withTrace(r)
		id := r.Header.Get("X-Request-Id")
		if !isVisible(id, 128) {
			id = trace.id
		}
		w.Header().Set("X-Request-Id", id)
		seen := &statusWriter{w, http.StatusOK}
		if strings.Contains(r.URL.Path, "//") { // ServeMux would redirect
			newProblem(404, "not-found", "Not found", "Nothing is at this path.").write(seen, r)
		} else {
			mux.ServeHTTP(seen, r)
		}
		method := "OTHER"
		switch r.Method {
		case "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH":
			method = r.Method
		}
		route := r.Pattern[strings.Index(r.Pattern, " ")+1:]
		if route == "/" || route == "" {
			route = "unmatched"
		}
		status, took := strconv.Itoa(seen.status), time.Since(begun)
		requestDuration.WithLabelValues(method, route, status).Observe(took.Seconds())
		requestsTotal.WithLabelValues(method, route, status).Inc()
		level := slog.LevelInfo
		if route == "/healthz" || route == "/readyz" || route == "/metrics" {
			level = slog.LevelDebug
		}
		slog.LogAttrs(r.Context(), level, "request answered", slog.String("method", method), slog.String("route", route),
			slog.Int("status", seen.status), slog.Float64("duration_ms", float64(took.Microseconds())/1e3), slog.String("request_id", id))
	})
}

// Health knows what the monitors found last.
type Health struct {
	Stopping        func() bool
	Database, Kafka *Monitor
}

func (h *Health) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	database, kafka := h.Database.Word(), h.Kafka.Word()
	status, code := "ready", http.StatusOK
	if database != "ok" || kafka != "ok" {
		status, code = "unready", http.StatusServiceUnavailable
	}
	if h.Stopping() {
		status, code = "stopping", http.StatusServiceUnavailable
	}
	body, _ := json.Marshal(map[string]any{"status": status, "checks": map[string]string{"database": database, "kafka": kafka}})
	write(w, code, "application/json", body)
}
