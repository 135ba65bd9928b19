//! Audits over HTTP: what a participant's ledger adds up to.

use std::sync::Arc;

use serde::Serialize;
use tbd_http::{Problem, Response, Router, problem};

use crate::participants::domain::{Participant, Stock};
use crate::participants::ports::{Audit, Ledger, LedgerError, Total};

#[derive(Serialize)]
struct StockBody {
    total: i64,
    available: i64,
    held: i64,
    sold: i64,
}

#[derive(Serialize)]
struct TotalBody {
    count: i64,
    amount_cents: i128,
}

#[derive(Serialize)]
struct TotalsBody {
    authorized: TotalBody,
    captured: TotalBody,
    voided: TotalBody,
}

/// Adds the participant's audit: `GET /v1/stock` (inventory) or `GET /v1/totals` (payments). Both
/// answer 503 while the database is away.
pub fn audits(router: Router, participant: Participant, ledger: Arc<dyn Ledger>) -> Router {
    let path = match participant {
        Participant::Inventory => "/v1/stock",
        Participant::Payments => "/v1/totals",
    };
    router.get(path, move |request| {
        let audit = ledger.audit(request.deadline()).map_err(to_problem)?;
        let body = match audit {
            Audit::Stock(Stock {
                available,
                held,
                sold,
            }) => serde_json::to_vec(&StockBody {
                total: available + held + sold,
                available,
                held,
                sold,
            }),
            Audit::Payments {
                authorized,
                captured,
                voided,
            } => serde_json::to_vec(&TotalsBody {
                authorized: total(authorized),
                captured: total(captured),
                voided: total(voided),
            }),
        };
        // Numbers cannot fail to serialize.
        Ok(Response::json(200, body.unwrap_or_default()))
    })
}

fn total(total: Total) -> TotalBody {
    TotalBody {
        count: total.count,
        amount_cents: total.amount_cents,
    }
}

fn to_problem(error: LedgerError) -> Problem {
    match error {
        LedgerError::Unavailable(reason) => {
            log::warn!("{reason}");
            let detail = "The database is not available. Try again later.";
            Problem::new(503, "dependency-unavailable", "Service Unavailable", detail)
                .retry_after(1)
        }
        LedgerError::Internal(reason) => {
            log::error!("{reason}");
            problem::internal()
        }
    }
}
