//! What a channel does when servers come, go, fail and hang.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tbd_deadline::Deadline;
use tbd_grpc::client::RetryPolicy;
use tbd_grpc::{Channel, Code, Keepalive, Router, Server, Status};

mod support;
use support::*;

/// A server that says which one it is.
fn named(name: &'static str) -> Server {
    let mut router = Router::new();
    router.unary(ECHO, move |_, _| Ok(name.to_owned()));
    start(router)
}

fn target(servers: &[&Server]) -> String {
    let addresses: Vec<String> = servers
        .iter()
        .map(|server| server.local_addr().to_string())
        .collect();
    addresses.join(",")
}

#[test]
fn calls_take_turns_among_the_servers() {
    let (first, second) = (named("first"), named("second"));
    let channel = channel_with(&target(&[&first, &second]), |_| {});
    let call = || {
        channel
            .call(ECHO)
            .wait_for_ready()
            .send(&String::new())
            .unwrap()
    };
    // Both have answered once: both are connected.
    let deadline = soon();
    while call() == call() {
        assert!(!deadline.is_past());
    }
    let answers: Vec<String> = (0..10).map(|_| call()).collect();
    assert_eq!(
        answers.iter().filter(|answer| *answer == "first").count(),
        5,
        "{answers:?}"
    );
}

#[test]
fn without_a_server_a_call_fails_at_once_or_waits_as_asked() {
    let address = listener().local_addr().unwrap(); // nobody listens there any more
    let channel = channel_with(&address.to_string(), |_| {});
    let status = channel
        .call(ECHO)
        .deadline(soon())
        .send(&String::new())
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let deadline = Deadline::after(Duration::from_millis(100));
    let status = channel
        .call(ECHO)
        .wait_for_ready()
        .deadline(deadline)
        .send(&String::new())
        .unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);

    let waiting = thread::spawn(move || {
        channel
            .call(ECHO)
            .wait_for_ready()
            .deadline(soon())
            .send(&"a".to_owned())
    });
    let _server = Server::builder(echo())
        .start(TcpListener::bind(address).unwrap())
        .unwrap();
    assert_eq!(waiting.join().unwrap().unwrap(), "a");
}

#[test]
fn a_name_that_does_not_exist_is_unavailable() {
    let channel = channel_with("does-not-exist.invalid:1", |_| {});
    let status = channel
        .call(ECHO)
        .deadline(soon())
        .send(&String::new())
        .unwrap_err();
    assert!(
        matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded),
        "{status}"
    );
}

#[test]
fn a_server_that_comes_back_is_found_again() {
    let server = start(echo());
    let address = server.local_addr();
    let channel = channel_with(&address.to_string(), |_| {});
    channel.call(ECHO).send(&String::new()).unwrap();
    drop(server);
    let _server = Server::builder(echo())
        .start(TcpListener::bind(address).unwrap())
        .unwrap();
    channel
        .call(ECHO)
        .wait_for_ready()
        .deadline(soon())
        .send(&String::new())
        .unwrap();
}

/// Fails each call's first attempts, and counts all.
fn failing(
    first: usize,
    status: impl Fn() -> Status + Send + Sync + 'static,
) -> (Server, Arc<AtomicUsize>) {
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&attempts);
    let mut router = Router::new();
    router.unary(ECHO, move |_, request| {
        if counted.fetch_add(1, Ordering::SeqCst) < first {
            Err(status())
        } else {
            Ok(request)
        }
    });
    (start(router), attempts)
}

fn retrying(server: &Server) -> Channel {
    channel_with(&server.local_addr().to_string(), |config| {
        let mut policy = RetryPolicy::default();
        policy.backoff.initial = Duration::from_millis(1);
        config.retry = Some(policy);
    })
}

#[test]
fn unavailable_calls_are_repeated_as_the_policy_says() {
    let (server, attempts) = failing(3, || Status::new(Code::Unavailable, "later"));
    assert_eq!(
        retrying(&server).call(ECHO).send(&"a".to_owned()).unwrap(),
        "a"
    );
    assert_eq!(attempts.load(Ordering::SeqCst), 4);

    let (server, attempts) = failing(4, || Status::new(Code::Unavailable, "later"));
    let status = retrying(&server)
        .call(ECHO)
        .send(&String::new())
        .unwrap_err();
    assert_eq!(
        (status.code(), attempts.load(Ordering::SeqCst)),
        (Code::Unavailable, 4)
    );

    let (server, attempts) = failing(1, || Status::new(Code::Internal, "never"));
    let status = retrying(&server)
        .call(ECHO)
        .send(&String::new())
        .unwrap_err();
    assert_eq!(
        (status.code(), attempts.load(Ordering::SeqCst)),
        (Code::Internal, 1)
    );
}

#[test]
fn the_server_decides_when_a_call_is_repeated() {
    let (server, _) = failing(1, || Status::new(Code::Unavailable, "").with_pushback(200));
    let begun = Instant::now();
    assert!(retrying(&server).call(ECHO).send(&String::new()).is_ok());
    assert!(begun.elapsed() >= Duration::from_millis(200));

    let (server, attempts) = failing(1, || Status::new(Code::Unavailable, "").with_pushback(-1));
    assert!(retrying(&server).call(ECHO).send(&String::new()).is_err());
    assert_eq!(attempts.load(Ordering::SeqCst), 1);
}

#[test]
fn a_server_that_accepts_and_says_nothing_costs_the_deadline_and_no_more() {
    let silent = listener(); // the kernel accepts, nobody reads
    let channel = channel_with(&silent.local_addr().unwrap().to_string(), |_| {});
    let begun = Instant::now();
    let deadline = Deadline::after(Duration::from_millis(200));
    let status = channel
        .call(ECHO)
        .deadline(deadline)
        .send(&String::new())
        .unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn a_server_that_has_gone_silent_is_left() {
    let server = start(echo());
    let proxy = Proxy::start(&server);
    let channel = channel_with(&proxy.address, |config| {
        let (interval, timeout) = (Duration::from_millis(50), Duration::from_millis(100));
        config.connection.keepalive = Some(Keepalive {
            interval,
            timeout,
            without_calls: false,
        });
    });
    let (mut sending, mut receiving) = channel.call(CHAT).open().unwrap();
    sending.send(&"a".to_owned()).unwrap();
    receiving.next_message().unwrap();
    proxy.is_silent.store(true, Ordering::SeqCst);
    let status = receiving.next_message().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
}

#[test]
fn a_call_on_an_idle_connection_notices_that_the_server_has_gone_silent() {
    let server = start(echo());
    let proxy = Proxy::start(&server);
    let channel = channel_with(&proxy.address, |config| {
        let (interval, timeout) = (Duration::from_millis(50), Duration::from_millis(100));
        config.connection.keepalive = Some(Keepalive {
            interval,
            timeout,
            without_calls: false,
        });
    });
    let call = || channel.call(ECHO).deadline(soon());
    call().send(&"a".to_owned()).unwrap();
    proxy.is_silent.store(true, Ordering::SeqCst);
    let status = call().send(&"b".to_owned()).unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
}

/// Passes octets on, until it has to swallow them.
struct Proxy {
    address: String,
    is_silent: Arc<AtomicBool>,
}

impl Proxy {
    fn start(server: &Server) -> Self {
        use std::io::{Read as _, Write as _};
        let (listener, upstream) = (listener(), server.local_addr());
        let proxy = Self {
            address: listener.local_addr().unwrap().to_string(),
            is_silent: Arc::default(),
        };
        let is_silent = Arc::clone(&proxy.is_silent);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = std::net::TcpStream::connect(upstream).unwrap();
                let ways = [
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server, client),
                ];
                for (mut from, mut to) in ways {
                    let is_silent = Arc::clone(&is_silent);
                    thread::spawn(move || {
                        let mut buffer = [0; 4096];
                        while let Ok(length @ 1..) = from.read(&mut buffer) {
                            if !is_silent.load(Ordering::SeqCst)
                                && to.write_all(&buffer[..length]).is_err()
                            {
                                break;
                            }
                        }
                    });
                }
            }
        });
        proxy
    }
}

#[test]
fn many_threads_share_one_connection() {
    let server = start_with(echo(), |config| {
        config.connection.limits.concurrent_streams_max = 8
    });
    let channel = channel(&server);
    thread::scope(|scope| {
        for number in 0..32 {
            let channel = &channel;
            scope.spawn(move || {
                for round in 0..20 {
                    let request = format!("{number}/{round}{}", "x".repeat(number * 100));
                    assert_eq!(
                        channel.call(ECHO).deadline(soon()).send(&request).unwrap(),
                        request
                    );
                }
            });
        }
    });
    assert_eq!(server.connections(), 1);
}

#[test]
fn a_rolling_restart_fails_no_call() {
    let (first, second) = (start(echo()), start(echo()));
    let channel = channel_with(&target(&[&first, &second]), |_| {});
    let is_over = AtomicBool::new(false);
    // A failed assertion below sets no flag.
    let limit = soon();
    thread::scope(|scope| {
        let callers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut calls = 0;
                    while (!is_over.load(Ordering::SeqCst) && !limit.is_past()) || calls < 50 {
                        let answer = channel
                            .call(ECHO)
                            .wait_for_ready()
                            .deadline(soon())
                            .send(&"a".to_owned());
                        assert_eq!(answer, Ok("a".to_owned()));
                        calls += 1;
                    }
                })
            })
            .collect();
        for server in [first, second] {
            let address = server.local_addr();
            assert!(server.stop(soon()));
            // The next one listens before the other one stops.
            let next = Server::builder(echo())
                .start(TcpListener::bind(address).unwrap())
                .unwrap();
            std::mem::forget(next); // it serves until the process ends
            channel
                .call(ECHO)
                .wait_for_ready()
                .send(&String::new())
                .unwrap();
        }
        is_over.store(true, Ordering::SeqCst);
        callers
            .into_iter()
            .for_each(|caller| caller.join().unwrap());
    });
}

#[test]
fn dropping_half_of_a_call_cancels_it() {
    let server = start(echo());
    let channel = channel(&server);
    let (sending, mut receiving) = channel.call(CHAT).open().unwrap();
    drop(sending);
    assert_eq!(
        receiving.next_message().unwrap_err().code(),
        Code::Cancelled
    );
}

#[test]
fn who_waits_in_one_half_hears_at_once_that_the_other_was_dropped() {
    let server = start(echo());
    let channel = channel(&server);
    let (sending, mut receiving) = channel.call(CHAT).deadline(soon()).open().unwrap();
    let waiting = thread::spawn(move || receiving.next_message());
    thread::sleep(Duration::from_millis(100)); // it waits by now
    drop(sending);
    let status = waiting.join().unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Cancelled);
}

#[test]
fn who_sends_hears_at_once_that_nobody_receives_any_more() {
    let server = start(echo());
    let channel = channel(&server);
    let call = channel.call(CHAT).deadline(soon());
    let (mut sending, receiving) = call.open().unwrap();
    let waiting = thread::spawn(move || {
        // The server answers as it reads, so it takes no more at some time.
        loop {
            if let Err(status) = sending.send(&"x".repeat(10_000)) {
                return status;
            }
        }
    });
    thread::sleep(Duration::from_millis(100)); // it waits by now
    drop(receiving);
    assert_eq!(waiting.join().unwrap().code(), Code::Cancelled);
}

#[test]
fn a_call_gets_the_place_of_one_that_was_cancelled() {
    let server = start_with(echo(), |config| {
        config.connection.limits.concurrent_streams_max = 1
    });
    let channel = channel(&server);
    let (mut sending, mut receiving) = channel.call(CHAT).open().unwrap();
    sending.send(&"a".to_owned()).unwrap();
    receiving.next_message().unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let call = channel.call(ECHO).deadline(soon());
            call.send(&"b".to_owned())
        });
        thread::sleep(Duration::from_millis(100)); // it waits by now
        drop((sending, receiving));
        assert_eq!(waiting.join().unwrap(), Ok("b".to_owned()));
    });
}

#[test]
fn the_end_of_a_channel_and_its_calls_closes_its_connections() {
    let server = start(echo());
    let channel = channel(&server);
    let (mut sending, mut receiving) = channel.call(CHAT).open().unwrap();
    drop(channel);
    // A call keeps its channel open.
    sending.send(&"a".to_owned()).unwrap();
    assert_eq!(receiving.next_message(), Ok(Some("a".to_owned())));
    drop((sending, receiving));
    let deadline = soon();
    while server.connections() > 0 {
        assert!(!deadline.is_past());
        thread::yield_now();
    }
}

/// One call of a random kind, ended in a random way.
fn random_call(channel: &Channel, dice: &mut fastrand::Rng) {
    let text = "x".repeat(dice.usize(..200_000));
    let deadline = if dice.u8(..5) == 0 {
        Deadline::after(Duration::from_millis(dice.u64(..5)))
    } else {
        soon()
    };
    let unexpected =
        |status: &Status| !matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled);
    if dice.bool() {
        let mut call = channel.call(ECHO).deadline(deadline);
        if dice.bool() {
            call = call.gzip();
        }
        match call.send(&text) {
            Ok(answer) => assert_eq!(answer, text),
            Err(status) => assert!(!unexpected(&status), "{status}"),
        }
        return;
    }
    let result =
        channel
            .call(CHAT)
            .deadline(deadline)
            .open()
            .and_then(|(mut sending, mut receiving)| {
                for _ in 0..dice.usize(..10) {
                    sending.send(&text)?;
                    assert_eq!(receiving.next_message()?.as_ref(), Some(&text));
                    if dice.u8(..10) == 0 {
                        return Ok(()); // and both halves are dropped
                    }
                }
                sending.finish();
                while let Some(answer) = receiving.next_message()? {
                    assert_eq!(answer, text);
                }
                Ok(())
            });
    if let Err(status) = result {
        assert!(!unexpected(&status), "{status}");
    }
}

#[test]
fn random_calls_disturb_each_other_in_no_way() {
    let server = start_with(echo(), |config| {
        config.connection.limits.concurrent_streams_max = 6;
        config.connection.limits.resets_burst = 100_000; // far more are cancelled than a client has reason to
    });
    let channel = channel(&server);
    let end = Deadline::after(Duration::from_secs(2));
    thread::scope(|scope| {
        for seed in 0..8 {
            let channel = &channel;
            scope.spawn(move || {
                let mut dice = fastrand::Rng::with_seed(seed);
                while !end.is_past() {
                    random_call(channel, &mut dice);
                }
            });
        }
    });
    assert_eq!(
        channel
            .call(ECHO)
            .deadline(soon())
            .send(&"a".to_owned())
            .unwrap(),
        "a"
    );
    assert_eq!(server.connections(), 1);
    drop(channel);
    assert!(server.stop(soon()));
}

#[test]
fn a_sender_hears_of_the_status_with_which_the_server_has_ended_the_call() {
    let mut router = Router::new();
    router.client_streaming(CHAT, |_, _| {
        Err::<String, _>(Status::new(Code::PermissionDenied, "not you"))
    });
    let server = start(router);
    let channel = channel(&server);
    let (mut sending, receiving) = channel.call(CHAT).deadline(soon()).open().unwrap();
    let status = std::iter::repeat_with(|| sending.send(&"x".repeat(1000)))
        .find_map(Result::err)
        .unwrap();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(
        receiving.only_message().unwrap_err().code(),
        Code::PermissionDenied
    );
}
