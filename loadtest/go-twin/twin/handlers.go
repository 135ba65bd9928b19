package twin

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
)

// An API answers the four requests of the contract.
type API struct {
	Store    *Store
	Delivery *Delivery
	TTL      time.Duration
}

func (a *API) create(w http.ResponseWriter, r *http.Request) *problem {
	if p := requireJSON(r.Header); p != nil {
		return p
	}
	key, p := idempotencyKey(r.Header.Values("Idempotency-Key"))
	if p != nil {
		return p
	}
	body, p := readBody(w, r)
	if p != nil {
		return p
	}
	email, amount, p := parseNewOrder(body)
	if p != nil {
		return p
	}
	order, err := newOrder(email, amount)
	if err != nil {
		return storeProblem(err)
	}
	// A client that disconnects does not end a request that is half done.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), requestLimit)
	defer cancel()
	id, answer, isReplay, p := a.accept(ctx, key, order)
	if p != nil {
		return p
	}
	w.Header().Set("Location", "/v1/orders/"+id.String())
	if isReplay {
		w.Header().Set("Idempotent-Replayed", "true")
	}
	write(w, http.StatusAccepted, "application/json", answer)
	return nil
}

// accept stores the order with its answer, and delivers its event.
func (a *API) accept(ctx context.Context, key string, order Order) (uuid.UUID, []byte, bool, *problem) {
	payload := event(order, a.Delivery.bus.topics.Created, "")
	row := &submission{key, order, encode(order.wire()), message{order.ID, payload, traceOf(ctx).parent()}, a.TTL.Seconds()}
	found, err := a.Store.Submit(ctx, row)
	if err != nil {
		return uuid.Nil, nil, false, storeProblem(err)
	}
	id, answer, unpublished := order.ID, row.body, &row.event
	switch found.verdict {
	case first:
		ordersCreated.Inc()
		slog.InfoContext(ctx, "order created", "order_id", id)
	case replayed:
		idempotencyHits.Inc()
		id, answer, unpublished = found.id, found.body, found.unpublished
		slog.InfoContext(ctx, "answer replayed", "order_id", id)
	case otherRequest:
		return id, nil, false, newProblem(422, "idempotency-key-reused", "Idempotency-Key Reused",
			"This Idempotency-Key was used for another order; take a new key for a new order.")
	default:
		return id, nil, false, newProblem(409, "idempotency-key-in-progress", "Request In Progress",
			"The first request with this Idempotency-Key is still running; try again.")
	}
	if unpublished != nil {
		if err := a.Delivery.deliver(ctx, *unpublished); err != nil {
			slog.WarnContext(ctx, "event not published", "order_id", id, "error", err)
			return id, nil, false, newProblem(503, "dependency-unavailable", "Service Unavailable",
				"The order is safe, but the event bus is not available. Try again; with the same Idempotency-Key this is safe.")
		}
	}
	return id, answer, found.verdict == replayed, nil
}

func (a *API) get(w http.ResponseWriter, r *http.Request) *problem {
	id, p := orderID(r.PathValue("id"))
	if p != nil {
		return p
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestLimit)
	defer cancel()
	order, err := a.Store.Get(ctx, id)
	if err != nil {
		return storeProblem(err)
	}
	tag := order.Etag()
	w.Header().Set("ETag", tag)
	if held := r.Header.Values("If-None-Match"); len(held) > 0 && matches(held, func(t string) bool { return strings.TrimPrefix(t, "W/") == tag }) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	write(w, http.StatusOK, "application/json", encode(order.wire()))
	return nil
}

func (a *API) list(w http.ResponseWriter, r *http.Request) *problem {
	page, p := parsePage(r.URL.RawQuery)
	if p != nil {
		return p
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestLimit)
	defer cancel()
	// One order more than asked for shows whether there are more.
	orders, err := a.Store.List(ctx, page.status, page.before, (page.number-1)*page.size, page.size+1)
	if err != nil {
		return storeProblem(err)
	}
	answer := struct {
		Orders     []orderJSON `json:"orders"`
		Page       *int64      `json:"page"`
		PageSize   int64       `json:"page_size"`
		HasMore    bool        `json:"has_more"`
		NextCursor *string     `json:"next_cursor"`
	}{Orders: []orderJSON{}, PageSize: page.size, HasMore: int64(len(orders)) > page.size}
	if page.before == uuid.Max {
		answer.Page = &page.number
	}
	if answer.HasMore {
		orders = orders[:page.size]
		next := cursor(orders[page.size-1].ID)
		answer.NextCursor = &next
	}
	for _, order := range orders {
		answer.Orders = append(answer.Orders, order.wire())
	}
	write(w, http.StatusOK, "application/json", encode(answer))
	return nil
}

func (a *API) cancel(w http.ResponseWriter, r *http.Request) *problem {
	id, p := orderID(r.PathValue("id"))
	if p != nil {
		return p
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestLimit)
	defer cancel()
	var attempted *Order
	for {
		old, err := a.Store.Get(ctx, id)
		if err != nil {
			return storeProblem(err)
		}
		canceled := old
		isOurs := attempted != nil && old.Status == attempted.Status && old.UpdatedAt.Equal(attempted.UpdatedAt)
		if !isOurs {
			if tags := r.Header.Values("If-Match"); len(tags) > 0 && !matches(tags, func(t string) bool { return t == old.Etag() }) {
				return newProblem(412, "precondition-failed", "Precondition Failed", "The order is no longer as If-Match describes it; get it again.")
			}
			switch old.Status {
			case "canceled":
			case "pending":
				canceled.Status, canceled.UpdatedAt = "canceled", time.Now().UTC().Truncate(time.Microsecond)
				if canceled.UpdatedAt.Before(old.CreatedAt) { // another machine's clock
					canceled.UpdatedAt = old.CreatedAt
				}
				done, err := a.Store.Replace(ctx, old, canceled)
				if err != nil {
					return storeProblem(err)
				}
				if !done {
					attempted = &canceled
					continue
				}
			default:
				return newProblem(409, "order-not-cancelable", "Order Not Cancelable",
					"Only a pending order can be canceled; the order is "+old.Status+" and can no longer be canceled.")
			}
		}
		w.Header().Set("ETag", canceled.Etag())
		write(w, http.StatusOK, "application/json", encode(canceled.wire()))
		return nil
	}
}
