//! A call that is ready to run, on any thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::call::Call;
use super::router::{Route, Router};
use crate::code::Code;
use crate::status::Status;

/// A call whose handler has not run. [`Job::run`] runs it on the calling thread; dropping it answers UNAVAILABLE.
pub struct Job {
    call: Call,
    router: Arc<Router>,
    route: Route,
    is_answered: bool,
}

impl Job {
    pub(super) fn new(call: Call, router: Arc<Router>, route: Route) -> Self {
        Self {
            call,
            router,
            route,
            is_answered: false,
        }
    }

    /// The call.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// Whether the call is one of health or reflection.
    pub(super) fn is_own(&self) -> bool {
        self.route.is_own
    }

    /// Runs the handler and answers. A call that was cancelled while it waited is dropped. A panic of the handler is
    /// answered with INTERNAL. Blocks as long as the handler does.
    pub fn run(mut self) {
        self.is_answered = true;
        if self.call.is_cancelled() {
            return self.answer(Status::new(Code::Cancelled, "cancelled while it waited"));
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            self.router.run(&self.call, &self.route)
        }));
        let outcome = outcome.unwrap_or_else(|_| {
            log::error!("the handler of {} panicked", self.call.path());
            Err(Status::internal("the handler failed"))
        });
        let metadata = self.call.metadata();
        let outcome = outcome.map_err(|status| self.router.map_error(metadata, status));
        self.call.finish(outcome);
    }

    /// Answers with `status` instead of running the handler.
    pub fn refuse(mut self, status: Status) {
        self.is_answered = true;
        self.answer(status);
    }

    fn answer(&self, status: Status) {
        let status = self.router.map_error(self.call.metadata(), status);
        self.router.refused(self.call.path(), &status);
        self.call.finish(Err(status));
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.is_answered {
            self.answer(Status::unavailable("the server has no capacity left"));
        }
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job")
            .field("call", &self.call)
            .finish_non_exhaustive()
    }
}
