package twin

import (
	"context"
	"errors"
	"net"
	"net/url"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

const (
	accepted    = int16(202) // response_status of every stored key
	rowsMax     = 64
	readers     = 2
	storeLimit  = 10 * time.Second
	lockTimeout = "55P03"
)

var errNotFound = errors.New("there is no such order")

var queryDuration = promauto.NewHistogramVec(prometheus.HistogramOpts{
	Name: "db_query_duration_seconds", Help: "Time of a statement.", Buckets: seconds}, []string{"query"})

// A Store holds orders, keys and the outbox.
type Store struct {
	pool    *pgxpool.Pool
	writer  *batcher[*submission, outcome]
	lookups *batcher[uuid.UUID, *Order]
}

// OpenStore makes the pool, which connects when it is used. With coalesce, orders that arrive during a commit share
// the next one, and look-ups of an order likewise.
func OpenStore(ctx context.Context, c Config, connections int32, coalesce bool) (*Store, error) {
	config, err := pgxpool.ParseConfig(c.databaseURL())
	if err != nil {
		return nil, err
	}
	config.MaxConns = connections
	config.MaxConnLifetime = c.Duration("DB_CONN_MAX_LIFETIME", "5m")
	config.ConnConfig.ConnectTimeout = 2 * time.Second
	// As tbd's sessions.
	config.ConnConfig.RuntimeParams = map[string]string{
		"application_name": c.Service, "statement_timeout": "5000", "lock_timeout": "3000", "idle_in_transaction_session_timeout": "60000",
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	s := &Store{pool: pool}
	if coalesce {
		s.writer = newBatcher(ctx, 1, rowsMax, s.submitAll)
		s.lookups = newBatcher(ctx, readers, rowsMax, s.getAll)
	}
	return s, nil
}

func (c Config) databaseURL() string {
	host := net.JoinHostPort(c.String("DB_HOST", "localhost"), c.String("DB_PORT", "5432"))
	user := url.UserPassword(c.String("DB_USER", "tbd"), c.String("DB_PASSWORD", "secret"))
	database := url.URL{Scheme: "postgres", User: user, Host: host, Path: c.String("DB_NAME", "tbd"), RawQuery: "sslmode=disable"}
	return database.String()
}

// query runs a statement, and again after a transient error: every statement may be repeated.
func query[T any](ctx context.Context, s *Store, st statement, scan pgx.RowToFunc[T], arguments ...any) ([]T, error) {
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	for tries := 0; ; tries++ {
		begun := time.Now()
		rows, err := s.pool.Query(ctx, st.sql, arguments...)
		var found []T
		if err == nil {
			found, err = pgx.CollectRows(rows, scan)
		}
		queryDuration.WithLabelValues(st.name).Observe(time.Since(begun).Seconds())
		if err == nil || tries == 3 || !isTransient(err) || ctx.Err() != nil {
			return found, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (s *Store) execute(ctx context.Context, st statement, arguments ...any) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	for tries := 0; ; tries++ {
		begun := time.Now()
		tag, err := s.pool.Exec(ctx, st.sql, arguments...)
		queryDuration.WithLabelValues(st.name).Observe(time.Since(begun).Seconds())
		if err == nil || tries == 3 || !isTransient(err) || ctx.Err() != nil {
			return tag.RowsAffected(), err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func sqlstate(err error) string {
	var failed *pgconn.PgError
	if errors.As(err, &failed) {
		return failed.Code
	}
	return ""
}

// isTransient: the connection, a deadlock, a serialisation failure, or a server that stops or starts.
func isTransient(err error) bool {
	switch sqlstate(err) {
	case "":
		return !errors.Is(err, context.DeadlineExceeded)
	case "40001", "40P01", "57P01", "57P02", "57P03":
		return true
	}
	return false
}

// isUnavailable: the statement may work later. Everything else is an error of ours.
func isUnavailable(err error) bool {
	code := sqlstate(err)
	return code == "" || isTransient(err) || code == "57014" || code == lockTimeout || code[:2] == "53" || code[:2] == "08"
}

func scanOrder(row pgx.CollectableRow) (Order, error) {
	var o Order
	err := row.Scan(&o.ID, &o.Email, &o.Amount, &o.Status, &o.CreatedAt, &o.UpdatedAt)
	return o, err
}

// Get returns the order, or errNotFound.
func (s *Store) Get(ctx context.Context, id uuid.UUID) (Order, error) {
	var found *Order
	var err error
	if s.lookups != nil {
		found, err = s.lookups.do(ctx, id)
	} else {
		found, err = s.getOne(ctx, id)
	}
	if err != nil {
		return Order{}, err
	}
	if found == nil {
		return Order{}, errNotFound
	}
	return *found, nil
}

func (s *Store) getOne(ctx context.Context, id uuid.UUID) (*Order, error) {
	orders, err := query(ctx, s, selectOrder, scanOrder, id)
	if err != nil || len(orders) == 0 {
		return nil, err
	}
	return &orders[0], nil
}

func (s *Store) getAll(ids []uuid.UUID) []result[*Order] {
	results := make([]result[*Order], len(ids))
	if len(ids) == 1 {
		results[0].out, results[0].err = s.getOne(context.Background(), ids[0])
		return results
	}
	orders, err := query(context.Background(), s, selectById, scanOrder, ids)
	byID := make(map[uuid.UUID]*Order, len(orders))
	for n := range orders {
		byID[orders[n].ID] = &orders[n]
	}
	for n, id := range ids {
		results[n] = result[*Order]{byID[id], err}
	}
	return results
}

// List returns the orders of a page; an empty status means all.
func (s *Store) List(ctx context.Context, status string, before uuid.UUID, skip, limit int64) ([]Order, error) {
	if status == "" {
		return query(ctx, s, selectPage, scanOrder, before, skip, limit)
	}
	return query(ctx, s, selectPageByStatus, scanOrder, before, skip, limit, status)
}

// Replace stores an order's new state if it still equals the old one, and reports whether it did.
func (s *Store) Replace(ctx context.Context, old, new Order) (bool, error) {
	count, err := s.execute(ctx, replaceOrder, old.ID, new.Status, new.UpdatedAt, old.Status, old.UpdatedAt)
	return count == 1, err
}

// Sweep deletes up to limit expired keys and returns their number.
func (s *Store) Sweep(ctx context.Context, limit int64) (int64, error) {
	return s.execute(ctx, sweepKeys, limit)
}

// Relay takes up to limit events that are older than minAge, and removes those that publish returns.
func (s *Store) Relay(ctx context.Context, limit int, minAge time.Duration, publish func([]message) []uuid.UUID) (taken, removed int, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, takeOutbox.sql, minAge.Seconds(), limit)
		if err != nil {
			return err
		}
		messages, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (m message, err error) {
			var traceparent *string
			err = row.Scan(&m.id, &m.payload, &traceparent)
			m.traceparent = text(traceparent)
			return m, err
		})
		if err != nil || len(messages) == 0 {
			return err
		}
		published := publish(messages)
		taken, removed = len(messages), len(published)
		_, err = tx.Exec(ctx, removeOutbox.sql, published)
		return err
	})
	return taken, removed, err
}

// Remove deletes published events.
func (s *Store) Remove(ctx context.Context, ids []uuid.UUID) error {
	_, err := s.execute(ctx, removeOutbox, ids)
	return err
}

// Backlog returns the number of events in the outbox and the age of the oldest in seconds.
func (s *Store) Backlog(ctx context.Context) (rows int64, oldest float64, err error) {
	err = s.pool.QueryRow(ctx, measureOutbox.sql).Scan(&rows, &oldest)
	return rows, oldest, err
}

// Check asks the database for a table of the newest migration.
func (s *Store) Check(ctx context.Context) error {
	_, err := s.pool.Exec(ctx, "SELECT FROM outbox LIMIT 0")
	return err
}

// A claimed order; Reason is why it failed earlier.
type claimed struct {
	Order
	reason string
}

func scanClaimed(row pgx.CollectableRow) (c claimed, err error) {
	var reason *string
	err = row.Scan(&c.ID, &c.Email, &c.Amount, &c.Status, &c.CreatedAt, &c.UpdatedAt, &reason)
	c.reason = text(reason)
	return c, err
}

// Claim moves pending orders to processing, and returns the state of all.
func (s *Store) Claim(ctx context.Context, ids []uuid.UUID) (map[uuid.UUID]claimed, error) {
	orders, err := query(ctx, s, claimOrders, scanClaimed, ids, time.Now())
	if err == nil && len(orders) < len(ids) {
		// Another session may have changed an order meanwhile: then it was in neither half.
		orders, err = query(ctx, s, selectClaimed, scanClaimed, ids)
	}
	found := make(map[uuid.UUID]claimed, len(orders))
	for _, order := range orders {
		found[order.ID] = order
	}
	return found, err
}

// Complete moves processing orders to completed, and returns them.
func (s *Store) Complete(ctx context.Context, ids []uuid.UUID) ([]Order, error) {
	return query(ctx, s, completeOrders, scanOrder, ids, time.Now())
}

// Fail moves processing orders to failed, each with its reason, and returns them.
func (s *Store) Fail(ctx context.Context, ids []uuid.UUID, reasons []string) ([]Order, error) {
	return query(ctx, s, failOrders, scanOrder, ids, reasons, time.Now())
}
