//! The imports: the only ways out of the guest, besides the WASI floor. Each says for which request it is.
//!
//! Natively, where only the tests run, a double takes their place and keeps what it was told.

use neoc_abi::event::Finish;
use neoc_abi::log::{Level, MAX_LINE_BYTES, Record};
use neoc_abi::{Call, Completion, OperationError, Outcome, wire};

#[cfg(not(target_arch = "wasm32"))]
pub use double as imports;

/// Asks the host for an effect. `None`: a completion with this `id` comes later.
pub fn submit(request: u32, id: u32, call: &Call) -> Option<Outcome> {
    let Ok(bytes) = wire::encode(call) else {
        return Some(Err(OperationError::invalid("the operation cannot be written")));
    };
    let reply = imports::submit(request, id, &bytes)?;
    Some(wire::decode(&reply).unwrap_or_else(|_| Err(OperationError::io("the host's reply cannot be read"))))
}

/// Has the host stop an operation. If it is to confirm, a completion comes once nothing of it is left.
pub fn cancel(request: u32, id: u32, confirm: bool) {
    imports::cancel(request, id, u32::from(confirm));
}

/// Stands still until operations have finished, of this request, or of any, and gives them.
pub fn wait(request: u32, of_any: bool) -> Vec<Completion> {
    // The host and the guest are built together: bytes that cannot be read are nobody's completions.
    wire::decode(&imports::wait(request, u32::from(of_any))).unwrap_or_default()
}

/// Takes the message of so many bytes that the host has for the export that it calls.
pub fn receive(length: usize) -> Vec<u8> {
    imports::receive(length)
}

/// Tells the host where this VM is about to stand still, because Luau cannot yield there.
pub fn stall(request: u32, place: &str) {
    imports::stall(request, place.as_bytes());
}

/// Gives the thread back until the host lets this VM go on. The VM ends here if its time is used up.
pub fn pause() {
    #[cfg(target_arch = "wasm32")]
    imports::pause();
}

/// Ends a load or a start, of which so many tasks go on.
pub fn finish(request: u32, n_left: usize, finish: &Finish) {
    let bytes = wire::encode(finish).expect("the contract's types always have a postcard form");
    imports::finish(request, u32::try_from(n_left).unwrap_or(u32::MAX), &bytes);
}

/// Says that the tasks that went on after a start's end have ended.
pub fn over(request: u32) {
    imports::over(request);
}

/// Hands over a line of the script's output. Longer ones are cut.
pub fn log(request: u32, level: Level, text: &[u8]) {
    // A cut inside a character is repaired by the lossy conversion, a longer text by the second cut.
    let mut text = String::from_utf8_lossy(&text[..text.len().min(MAX_LINE_BYTES)]).into_owned();
    neoc_abi::error::truncate_at_char(&mut text, MAX_LINE_BYTES);
    let bytes = wire::encode(&Record { level, text }).expect("the contract's types always have a postcard form");
    imports::log(request, &bytes);
}

#[cfg(target_arch = "wasm32")]
mod imports {
    //! The functions of the wasm module `neoc`, behind safe faces.

    mod raw {
        #[link(wasm_import_module = "neoc")]
        unsafe extern "C" {
            pub fn submit(request: u32, id: u32, pointer: *const u8, length: usize) -> i32;
            pub fn receive(pointer: *mut u8);
            pub safe fn cancel(request: u32, id: u32, confirm: u32);
            pub safe fn wait(request: u32, of_any: u32) -> usize;
            pub fn stall(request: u32, pointer: *const u8, length: usize);
            pub safe fn pause();
            pub fn finish(request: u32, n_left: u32, pointer: *const u8, length: usize);
            pub safe fn over(request: u32);
            pub fn log(request: u32, pointer: *const u8, length: usize);
        }
    }

    pub use raw::{cancel, over, pause};

    pub fn submit(request: u32, id: u32, operation: &[u8]) -> Option<Vec<u8>> {
        // SAFETY: the host reads exactly this slice, before it returns.
        let length = unsafe { raw::submit(request, id, operation.as_ptr(), operation.len()) };
        Some(receive(usize::try_from(length).ok()?))
    }

    pub fn wait(request: u32, of_any: u32) -> Vec<u8> {
        receive(raw::wait(request, of_any))
    }

    /// Takes what the host has announced.
    pub fn receive(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        // SAFETY: the host writes exactly the number of bytes that it has just announced.
        unsafe { raw::receive(bytes.as_mut_ptr()) };
        bytes
    }

    pub fn stall(request: u32, place: &[u8]) {
        // SAFETY: the host reads exactly this slice, before it returns.
        unsafe { raw::stall(request, place.as_ptr(), place.len()) }
    }

    pub fn finish(request: u32, n_left: u32, bytes: &[u8]) {
        // SAFETY: the host reads exactly this slice, before it returns.
        unsafe { raw::finish(request, n_left, bytes.as_ptr(), bytes.len()) }
    }

    pub fn log(request: u32, bytes: &[u8]) {
        // SAFETY: the host reads exactly this slice, before it returns.
        unsafe { raw::log(request, bytes.as_ptr(), bytes.len()) }
    }
}

#[cfg(not(target_arch = "wasm32"))]
pub mod double {
    //! A host that performs nothing and remembers everything, one per thread, so one per test.

    use std::cell::RefCell;

    /// Gives the bytes of an outcome for the bytes of a call, or leaves it pending.
    pub type Answer = fn(&[u8]) -> Option<Vec<u8>>;

    /// What the guest has said, as bytes, in order.
    #[derive(Default)]
    pub struct Said {
        /// By `submit`, with the operation's number.
        pub submitted: Vec<(u32, Vec<u8>)>,
        /// By `cancel`, with whether the host is to confirm.
        pub cancelled: Vec<(u32, bool)>,
        /// By `stall`.
        pub stalls: Vec<String>,
        /// By `finish`.
        pub finished: Vec<Vec<u8>>,
        /// By `log`.
        pub logged: Vec<Vec<u8>>,
        /// For which request each of those calls was, by the name of the import.
        pub requests: Vec<(&'static str, u32)>,
        /// How many tasks went on at each `finish`.
        pub n_left: Vec<u32>,
        /// By `over`.
        pub over: Vec<u32>,
        /// When set by a test, answers an operation at once.
        pub answer_at_once: Option<Answer>,
        /// When set by a test, gives what `wait` brings.
        pub answer_wait: Option<fn() -> Vec<u8>>,
    }

    thread_local! {
        /// The double of this thread.
        pub static SAID: RefCell<Said> = RefCell::default();
    }

    fn say(import: &'static str, request: u32, keep: impl FnOnce(&mut Said)) {
        SAID.with_borrow_mut(|said| {
            said.requests.push((import, request));
            keep(said);
        });
    }

    pub fn submit(request: u32, id: u32, operation: &[u8]) -> Option<Vec<u8>> {
        say("submit", request, |said| said.submitted.push((id, operation.to_vec())));
        let answer = SAID.with_borrow(|said| said.answer_at_once);
        answer.and_then(|answer| answer(operation))
    }

    /// No test goes through the exports: each calls the VM with the bytes.
    pub fn receive(_length: usize) -> Vec<u8> {
        Vec::new()
    }

    pub fn cancel(request: u32, id: u32, confirm: u32) {
        say("cancel", request, |said| said.cancelled.push((id, confirm != 0)));
    }

    pub fn wait(request: u32, _of_any: u32) -> Vec<u8> {
        say("wait", request, |_| ());
        let answer = SAID.with_borrow(|said| said.answer_wait).expect("a test that waits says what comes");
        answer()
    }

    pub fn stall(request: u32, place: &[u8]) {
        say("stall", request, |said| said.stalls.push(String::from_utf8_lossy(place).into_owned()));
    }

    pub fn finish(request: u32, n_left: u32, bytes: &[u8]) {
        say("finish", request, |said| {
            said.finished.push(bytes.to_vec());
            said.n_left.push(n_left);
        });
    }

    pub fn over(request: u32) {
        SAID.with_borrow_mut(|said| said.over.push(request));
    }

    pub fn log(request: u32, bytes: &[u8]) {
        say("log", request, |said| said.logged.push(bytes.to_vec()));
    }
}
