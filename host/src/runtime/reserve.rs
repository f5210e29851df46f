//! The I/O thread that is kept in reserve.
//!
//! Tokio shares what there is to do among all its threads: whoever finds two things to do wakes another one for the
//! second. On a host that costs more than most of what is handed over, and spoils what the caches hold: with one thread
//! awake a small request takes two thirds of the time. Yet there must be a second, for a guest may keep the first.
//!
//! So one of the threads sits in a task that waits. To Tokio it is busy, and nobody wakes it or gives it anything. When
//! a guest keeps an I/O thread, the watcher releases it: it takes over what lies there, and waits for events. Once the
//! guest is gone, the next thread to come by sits down.
//!
//! Whoever sits gets up now and then and looks around by itself. So also what no watcher sees, a host function that
//! takes long, holds I/O up for no longer than that; and a runtime that shuts down gets its thread back.

use std::{sync::Arc, time::Duration};

use parking_lot::{Condvar, Mutex};

/// How long the thread sits before it looks around. Each time it takes over what it finds, so not too often.
const SIT: Duration = Duration::from_millis(50);

/// One thread of a runtime's that does nothing until it is needed.
#[derive(Debug)]
pub struct Reserve {
    io: tokio::runtime::Handle,
    seat: Arc<Seat>,
}

#[derive(Debug)]
struct Seat {
    /// See [`SIT`].
    sit: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// How many need the thread now.
    n_needing: usize,
    /// Never two: there might be no other thread.
    sitter: Sitter,
    is_closed: bool,
}

/// The thread in reserve.
#[derive(Debug, Default, PartialEq, Eq)]
enum Sitter {
    #[default]
    None,
    Expected,
    Sits,
}

// === impl Reserve ===

impl Reserve {
    /// Keeps one of `io`'s threads, of which there are two at least.
    pub fn keep(io: &tokio::runtime::Handle) -> Self {
        Self::keep_sitting(io, SIT)
    }

    fn keep_sitting(io: &tokio::runtime::Handle, sit: Duration) -> Self {
        let seat = Seat { sit, state: Mutex::default(), changed: Condvar::new() };
        let reserve = Self { io: io.clone(), seat: Arc::new(seat) };
        reserve.fill();
        reserve
    }

    /// Lets the thread work, until each who has called this has called [`Reserve::take_back`].
    pub fn release(&self) {
        self.seat.state.lock().n_needing += 1;
        self.seat.changed.notify_all();
    }

    /// The other half of [`Reserve::release`].
    pub fn take_back(&self) {
        let mut state = self.seat.state.lock();
        state.n_needing = state.n_needing.saturating_sub(1);
        let is_needed = state.n_needing > 0;
        drop(state);
        if !is_needed {
            self.fill();
        }
    }

    /// Gives the thread back for good.
    pub fn close(&self) {
        self.seat.state.lock().is_closed = true;
        self.seat.changed.notify_all();
    }

    fn fill(&self) {
        let mut state = self.seat.state.lock();
        if state.sitter == Sitter::None {
            state.sitter = Sitter::Expected;
            drop(state);
            drop(self.io.spawn(sit(Arc::clone(&self.seat))));
        }
    }
}

/// What the thread in reserve does.
async fn sit(seat: Arc<Seat>) {
    loop {
        // Also before the first time: a task that was woken by Tokio is the last thing that its thread has in the
        // place from which no other can take it.
        tokio::task::yield_now().await;
        if seat.is_left() {
            return;
        }
    }
}

// === impl Seat ===

impl Seat {
    /// Blocks for a while. True when the thread is needed, and has left.
    fn is_left(&self) -> bool {
        let mut state = self.state.lock();
        state.sitter = Sitter::Sits;
        let is_idle = |state: &mut State| state.n_needing == 0 && !state.is_closed;
        let waited = self.changed.wait_while_for(&mut state, is_idle, self.sit);
        if !waited.timed_out() {
            state.sitter = Sitter::None;
        }
        !waited.timed_out()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, RecvError};

    use tokio::task::JoinHandle;

    use super::*;

    /// Longer than a test lasts: nobody looks around by itself.
    const FOR_GOOD: Duration = Duration::from_secs(3600);

    /// No test waits longer.
    const TIMEOUT: Duration = Duration::from_secs(60);

    /// Gives the thread back also where a test fails: else its runtime would wait for it.
    struct Closes<'a>(&'a Reserve);

    impl Drop for Closes<'_> {
        fn drop(&mut self) {
            self.0.close();
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("builds")
    }

    /// Waits until a thread sits.
    fn settle(reserve: &Reserve) {
        while reserve.seat.state.lock().sitter != Sitter::Sits {
            std::thread::yield_now();
        }
    }

    /// Has the runtime run a task from outside.
    fn run_a_task(io: &tokio::runtime::Runtime) {
        let (end, ended) = mpsc::channel();
        io.spawn(async move { end.send(()) });
        ended.recv_timeout(TIMEOUT).expect("some thread works");
    }

    /// Has a task block one of the threads, until it is told to end.
    fn keep_a_thread(io: &tokio::runtime::Runtime) -> (mpsc::Sender<()>, JoinHandle<Result<(), RecvError>>) {
        let (leave, left) = mpsc::channel();
        let (begin, begun) = mpsc::channel();
        let kept = io.spawn(async move {
            begin.send(()).expect("somebody waits");
            left.recv()
        });
        begun.recv_timeout(TIMEOUT).expect("begins");
        (leave, kept)
    }

    #[test]
    fn a_runtime_works_while_a_thread_of_its_is_in_reserve() {
        let io = runtime();
        let reserve = Reserve::keep_sitting(io.handle(), FOR_GOOD);
        let _closes = Closes(&reserve);
        for _ in 0..100 {
            run_a_task(&io);
        }
    }

    #[test]
    fn the_reserve_takes_over_while_the_other_thread_is_kept() {
        let io = runtime();
        let reserve = Reserve::keep_sitting(io.handle(), FOR_GOOD);
        let _closes = Closes(&reserve);
        settle(&reserve);
        let (leave, kept) = keep_a_thread(&io);
        reserve.release();
        // By whom, if not by the reserve?
        run_a_task(&io);
        leave.send(()).expect("it waits");
        io.block_on(kept).expect("ends").expect("was sent");
        reserve.take_back();
        settle(&reserve);
        run_a_task(&io);
    }

    #[test]
    fn the_reserve_looks_around_by_itself_where_nobody_calls_it() {
        let io = runtime();
        let reserve = Reserve::keep_sitting(io.handle(), Duration::from_millis(1));
        let _closes = Closes(&reserve);
        settle(&reserve);
        let (leave, kept) = keep_a_thread(&io);
        run_a_task(&io);
        leave.send(()).expect("it waits");
        io.block_on(kept).expect("ends").expect("was sent");
    }

    #[test]
    fn however_often_it_is_released_and_taken_back_one_thread_works() {
        let io = runtime();
        let reserve = Reserve::keep_sitting(io.handle(), FOR_GOOD);
        let _closes = Closes(&reserve);
        for _ in 0..1000 {
            reserve.release();
            reserve.release();
            reserve.take_back();
            reserve.take_back();
        }
        run_a_task(&io);
    }

    #[test]
    fn a_runtime_ends_with_a_thread_in_reserve() {
        let io = runtime();
        let _reserve = Reserve::keep_sitting(io.handle(), Duration::from_millis(1));
        drop(io);
    }
}
