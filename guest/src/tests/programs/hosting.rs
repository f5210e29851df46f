//! A host that is a stream of random numbers: it ends operations in any order, in batches of any size, and
//! confirms what was cancelled when it likes.

use std::cell::RefCell;
use std::collections::BTreeMap;

use neoc_abi::{Completion, ErrorKind, Operation, OperationError, Outcome, Reply, detach, http, time, wire};

use crate::host::double::SAID;
use crate::operation;
use crate::tests::operation_of;

/// More batches than any program needs: the waits of one are bounded by its size.
const MAX_BATCHES: usize = 20_000;

/// The host of a program.
#[derive(Default)]
pub struct Hosting {
    random: u64,
    /// What the guest waits for, by its number.
    under_way: BTreeMap<u32, Started>,
    /// Which of the operations that were submitted since the last look were answered at once, in order.
    at_once: Vec<bool>,
    batches: usize,
    /// What the guest did that it must not do.
    pub complaints: Vec<String>,
}

struct Started {
    operation: Operation,
    /// Whether the guest has cancelled it, and waits for the confirmation.
    stopping: bool,
}

thread_local! {
    static HOSTING: RefCell<Hosting> = RefCell::default();
}

/// Begins anew, with a seed.
pub fn begin(seed: u64) {
    HOSTING.set(Hosting { random: seed, ..Hosting::default() });
    SAID.with_borrow_mut(|said| {
        *said = crate::host::double::Said {
            answer_at_once: Some(answer_at_once),
            answer_wait: Some(|| wire::encode(&batch_for_a_stall()).expect("encodes")),
            ..Default::default()
        };
    });
}

/// What the host gives next. Empty when it works on nothing.
pub fn next_batch() -> Vec<Completion> {
    HOSTING.with_borrow_mut(|hosting| {
        hosting.look();
        hosting.batch()
    })
}

fn batch_for_a_stall() -> Vec<Completion> {
    let batch = next_batch();
    // An empty one would let the guest ask again for ever.
    assert!(!batch.is_empty(), "the guest stands still for the host, which works on nothing");
    batch
}

/// Whether host and guest agree on what is under way. Gives the guest's misdeeds so far.
pub fn audit() -> Vec<String> {
    HOSTING.with_borrow_mut(|hosting| {
        hosting.look();
        let pending = operation::pending();
        let known: Vec<u32> = hosting.under_way.keys().copied().collect();
        if pending != known {
            hosting.complain(format!("the guest waits for {pending:?}, and the host works on {known:?}"));
        }
        std::mem::take(&mut hosting.complaints)
    })
}

fn answer_at_once(bytes: &[u8]) -> Option<Vec<u8>> {
    let operation = operation_of(bytes);
    HOSTING.with_borrow_mut(|hosting| {
        let now = matches!(operation, Operation::Detach(_)) || hosting.one_in(8);
        hosting.at_once.push(now);
        now.then(|| wire::encode(&hosting.outcome(&operation)).expect("encodes"))
    })
}

// === impl Hosting ===

impl Hosting {
    /// Takes notice of what the guest has said.
    fn look(&mut self) {
        let (submitted, cancelled) =
            SAID.with_borrow_mut(|said| (std::mem::take(&mut said.submitted), std::mem::take(&mut said.cancelled)));
        let at_once = std::mem::take(&mut self.at_once);
        for ((id, bytes), at_once) in submitted.into_iter().zip(at_once) {
            if !at_once {
                let operation = operation_of(&bytes);
                self.under_way.insert(id, Started { operation, stopping: false });
            }
        }
        for (id, confirm) in cancelled {
            self.cancel(id, confirm);
        }
    }

    fn cancel(&mut self, id: u32, confirm: bool) {
        let Some(started) = self.under_way.get_mut(&id) else {
            return self.complain(format!("the guest cancels {id}, which is not under way"));
        };
        let again = std::mem::replace(&mut started.stopping, true);
        if confirm && again {
            self.complain(format!("the guest cancels {id} twice"));
        } else if !confirm {
            self.under_way.remove(&id);
        }
    }

    fn batch(&mut self) -> Vec<Completion> {
        self.batches += 1;
        assert!(self.batches < MAX_BATCHES, "the program does not come to an end");
        let mut batch = Vec::new();
        // Often one, sometimes many.
        while !self.under_way.is_empty() && (batch.is_empty() || self.one_in(2)) {
            let nth = self.below(self.under_way.len());
            let id = *self.under_way.keys().nth(nth).expect("fewer than there are");
            let started = self.under_way.remove(&id).expect("it is there");
            // What is stopped may have come to its end just before.
            let stopped = started.stopping && !self.one_in(4);
            let outcome = if stopped { Err(stopped_error()) } else { self.outcome(&started.operation) };
            batch.push(Completion { id, outcome });
        }
        batch
    }

    fn outcome(&mut self, operation: &Operation) -> Outcome {
        match operation {
            Operation::Time(time::Operation::Wait { seconds }) => {
                Ok(Reply::Time(time::Reply::Waited { seconds: *seconds }))
            }
            Operation::Http(http::Operation::Request(_)) if self.one_in(4) => Err(OperationError::io("refused")),
            Operation::Http(http::Operation::Request(_)) => {
                let response = http::Response { status: 200, headers: Vec::new(), body: Vec::new() };
                Ok(Reply::Http(http::Reply::Response(response)))
            }
            Operation::Detach(_) if self.one_in(8) => Err(OperationError::new(ErrorKind::Denied, "no grant")),
            Operation::Detach(_) => Ok(Reply::Detach(detach::Reply::Begun)),
            other => panic!("no answer to {other:?}"),
        }
    }

    fn complain(&mut self, text: String) {
        self.complaints.push(text);
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A number below `n`: the generator named SplitMix64.
    fn below(&mut self, n: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % n as u64) as usize
    }
}

fn stopped_error() -> OperationError {
    OperationError::new(ErrorKind::Cancelled, "stopped")
}
