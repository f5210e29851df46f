//! The imports: the only ways out of the guest, besides the WASI floor.
//!
//! Natively, where only the tests run, a double takes their place and keeps what it was told.

use neoc_abi::event::Finish;
use neoc_abi::log::{Level, MAX_LINE_BYTES, Record};
use neoc_abi::{Call, Completion, OperationError, Outcome, wire};

#[cfg(not(target_arch = "wasm32"))]
pub use double as imports;

/// Asks the host for an effect. `None`: a completion with this `id` comes later.
pub fn submit(id: u32, call: &Call) -> Option<Outcome> {
    let Ok(bytes) = wire::encode(call) else {
        return Some(Err(OperationError::invalid("the operation cannot be written")));
    };
    let reply = imports::submit(id, &bytes)?;
    Some(wire::decode(&reply).unwrap_or_else(|_| Err(OperationError::io("the host's reply cannot be read"))))
}

/// Has the host stop an operation. If it is to confirm, a completion comes once nothing of it is left.
pub fn cancel(id: u32, confirm: bool) {
    imports::cancel(id, u32::from(confirm));
}

/// Stands still until operations have finished, and gives them.
pub fn wait() -> Vec<Completion> {
    // The host and the guest are built together: bytes that cannot be read are nobody's completions.
    wire::decode(&imports::wait()).unwrap_or_default()
}

/// Tells the host where this VM is about to stand still, because Luau cannot yield there.
pub fn stall(place: &str) {
    imports::stall(place.as_bytes());
}

/// Gives the thread back until the host lets this VM go on. The VM ends here if its time is used up.
pub fn pause() {
    #[cfg(target_arch = "wasm32")]
    imports::pause();
}

/// Ends a load or a start.
pub fn finish(finish: &Finish) {
    imports::finish(&wire::encode(finish).expect("the contract's types always have a postcard form"));
}

/// Hands over a line of the script's output. Longer ones are cut.
pub fn log(level: Level, text: &[u8]) {
    // A cut inside a character is repaired by the lossy conversion, a longer text by the second cut.
    let mut text = String::from_utf8_lossy(&text[..text.len().min(MAX_LINE_BYTES)]).into_owned();
    neoc_abi::error::truncate_at_char(&mut text, MAX_LINE_BYTES);
    imports::log(&wire::encode(&Record { level, text }).expect("the contract's types always have a postcard form"));
}

#[cfg(target_arch = "wasm32")]
mod imports {
    //! The functions of the wasm module `neoc`, behind safe faces.

    mod raw {
        #[link(wasm_import_module = "neoc")]
        unsafe extern "C" {
            pub fn submit(id: u32, pointer: *const u8, length: usize) -> i32;
            pub fn receive(pointer: *mut u8);
            pub safe fn cancel(id: u32, confirm: u32);
            pub safe fn wait() -> usize;
            pub fn stall(pointer: *const u8, length: usize);
            pub safe fn pause();
            pub fn finish(pointer: *const u8, length: usize);
            pub fn log(pointer: *const u8, length: usize);
        }
    }

    pub use raw::{cancel, pause};

    pub fn submit(id: u32, operation: &[u8]) -> Option<Vec<u8>> {
        // SAFETY: the host reads exactly this slice, before it returns.
        let length = unsafe { raw::submit(id, operation.as_ptr(), operation.len()) };
        Some(receive(usize::try_from(length).ok()?))
    }

    pub fn wait() -> Vec<u8> {
        receive(raw::wait())
    }

    /// Takes what the host has announced.
    fn receive(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        // SAFETY: the host writes exactly the number of bytes that it has just announced.
        unsafe { raw::receive(bytes.as_mut_ptr()) };
        bytes
    }

    pub fn stall(place: &[u8]) {
        // SAFETY: the host reads exactly this slice, before it returns.
        unsafe { raw::stall(place.as_ptr(), place.len()) }
    }

    pub fn finish(bytes: &[u8]) {
        // SAFETY: the host reads exactly this slice, before it returns.
        unsafe { raw::finish(bytes.as_ptr(), bytes.len()) }
    }

    pub fn log(bytes: &[u8]) {
        // SAFETY: the host reads exactly this slice, before it returns.
        unsafe { raw::log(bytes.as_ptr(), bytes.len()) }
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
        /// When set by a test, answers an operation at once.
        pub answer_at_once: Option<Answer>,
        /// When set by a test, gives what `wait` brings.
        pub answer_wait: Option<fn() -> Vec<u8>>,
    }

    thread_local! {
        /// The double of this thread.
        pub static SAID: RefCell<Said> = RefCell::default();
    }

    pub fn submit(id: u32, operation: &[u8]) -> Option<Vec<u8>> {
        SAID.with_borrow_mut(|said| {
            said.submitted.push((id, operation.to_vec()));
            said.answer_at_once.and_then(|answer| answer(operation))
        })
    }

    pub fn cancel(id: u32, confirm: u32) {
        SAID.with_borrow_mut(|said| said.cancelled.push((id, confirm != 0)));
    }

    pub fn wait() -> Vec<u8> {
        let answer = SAID.with_borrow(|said| said.answer_wait).expect("a test that waits says what comes");
        answer()
    }

    pub fn stall(place: &[u8]) {
        SAID.with_borrow_mut(|said| said.stalls.push(String::from_utf8_lossy(place).into_owned()));
    }

    pub fn finish(bytes: &[u8]) {
        SAID.with_borrow_mut(|said| said.finished.push(bytes.to_vec()));
    }

    pub fn log(bytes: &[u8]) {
        SAID.with_borrow_mut(|said| said.logged.push(bytes.to_vec()));
    }
}
