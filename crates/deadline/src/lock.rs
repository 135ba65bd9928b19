//! Locking that survives another thread's panic.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, even if a thread panicked while it held it (`std` calls such a mutex poisoned).
///
/// Use it where the guarded value is changed in whole steps, so that a panic between two of them
/// leaves it usable. Blocks until the mutex is free, without a time limit. So no lock may be held
/// across I/O or another wait.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_another_thread_leaves_the_value_reachable() {
        let mutex = Mutex::new(7);
        let panicked = std::thread::scope(|scope| {
            let holder = scope.spawn(|| {
                let _guard = lock(&mutex);
                panic!("while the lock is held");
            });
            holder.join().is_err()
        });
        assert!(panicked);
        assert_eq!(*lock(&mutex), 7);
    }
}
