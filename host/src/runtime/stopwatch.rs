//! CPU time of a stretch of work on one thread, mostly without asking the kernel for it.
//!
//! A thread's CPU clock is a system call, the wall clock is none. A thread uses no more CPU time than time passes, and
//! less only while it is off its processor, which lasts longer than [`SHORT`] when another thread is on it. So a short
//! stretch has taken the time that has passed. Of a longer one the CPU clock tells: it has taken no more than the
//! thread has used since the clock was last read, at most [`FRESH`] before the stretch began.
//!
//! That is never too little, but for what the two clocks differ, and too much only for a stretch in which the thread was
//! off its processor: by no more than that time, and than what the thread has used in [`FRESH`].

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

/// A stretch that is shorter has taken as much CPU time as time has passed.
const SHORT: Duration = Duration::from_micros(100);

/// For so long a reading of a thread's CPU clock will do for a stretch that begins.
const FRESH: Duration = Duration::from_millis(1);

/// When a stretch of work on a thread began.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch {
    began: Instant,
    /// What the thread's CPU clock had reached at the beginning, at least. In nanoseconds.
    cpu_nanoseconds: u64,
}

thread_local! {
    /// The last reading of the thread's CPU clock, and when it was.
    static READ: Cell<Option<(Instant, u64)>> = const { Cell::new(None) };

    /// When a stretch on the thread was last asked for its time.
    static ASKED: Cell<Option<Instant>> = const { Cell::new(None) };
}

impl Stopwatch {
    /// Begins a stretch on the calling thread.
    pub fn start() -> Self {
        Self::start_at(Instant::now())
    }

    fn start_at(began: Instant) -> Self {
        let fresh = READ.get().filter(|(read, _)| began.duration_since(*read) < FRESH);
        let cpu_nanoseconds = fresh.map_or_else(|| read(began), |(_, nanoseconds)| nanoseconds);
        Self { began, cpu_nanoseconds }
    }

    /// When it began.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// CPU time since then. To be asked on the thread that began.
    pub fn cpu_time(&self) -> Duration {
        let now = Instant::now();
        ASKED.set(Some(now));
        self.cpu_time_until(now)
    }

    /// [`Stopwatch::cpu_time`], and the stretch that begins where this one ends. That is when any stretch on this thread
    /// was last asked, if one was since this one began: the clock need not be read again right after.
    pub fn lap(&self) -> (Duration, Self) {
        let asked = ASKED.get().filter(|asked| *asked > self.began);
        let now = asked.unwrap_or_else(Instant::now);
        (self.cpu_time_until(now), Self::start_at(now))
    }

    fn cpu_time_until(&self, now: Instant) -> Duration {
        let elapsed = now.duration_since(self.began);
        if elapsed < SHORT { elapsed } else { self.at_most(elapsed, read(now)) }
    }

    /// CPU time since then, by any thread, when that thread's CPU clock shows so many nanoseconds.
    pub fn cpu_time_at(&self, cpu_nanoseconds: u64) -> Duration {
        self.at_most(self.began.elapsed(), cpu_nanoseconds)
    }

    fn at_most(&self, elapsed: Duration, cpu_nanoseconds: u64) -> Duration {
        elapsed.min(Duration::from_nanos(cpu_nanoseconds.saturating_sub(self.cpu_nanoseconds)))
    }
}

/// Reads the thread's CPU clock, in nanoseconds, and keeps it for later stretches.
fn read(now: Instant) -> u64 {
    let nanoseconds = thread_cpu_nanoseconds();
    READ.set(Some((now, nanoseconds)));
    nanoseconds
}

/// CPU time of the calling thread, in nanoseconds.
pub fn thread_cpu_nanoseconds() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    fn spin(least: Duration) {
        let begin = thread_cpu_nanoseconds();
        while u128::from(thread_cpu_nanoseconds() - begin) < least.as_nanos() {}
    }

    #[test]
    fn a_stretch_has_taken_no_less_than_the_threads_clock_says() {
        for least in [Duration::ZERO, SHORT / 2, SHORT, 2 * FRESH] {
            // Of several that follow each other, too, which share a reading.
            for _ in 0..3 {
                let stopwatch = Stopwatch::start();
                spin(least);
                // The two clocks need not go at quite the same rate.
                assert!(stopwatch.cpu_time() >= least * 99 / 100);
                assert!(stopwatch.cpu_time_at(thread_cpu_nanoseconds()) >= least * 99 / 100);
            }
        }
    }

    #[test]
    fn time_off_the_processor_is_not_the_stretchs() {
        let (send, wait) = mpsc::channel();
        let waker = thread::spawn(move || {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(50) {
                thread::yield_now();
            }
            drop(send);
        });
        let stopwatch = Stopwatch::start();
        // Until the other end is gone.
        assert!(wait.recv() == Err::<(), _>(mpsc::RecvError));
        assert!(stopwatch.began().elapsed() >= Duration::from_millis(50));
        assert!(stopwatch.cpu_time() < Duration::from_millis(25));
        waker.join().expect("ends");
    }

    #[test]
    fn what_a_thread_did_long_before_a_stretch_is_not_the_stretchs() {
        let _before = Stopwatch::start();
        spin(3 * FRESH);
        let stopwatch = Stopwatch { began: Instant::now() - Duration::from_secs(60), ..Stopwatch::start() };
        assert!(stopwatch.cpu_time_at(thread_cpu_nanoseconds()) < 3 * FRESH);
    }
}
