//! What the host keeps beside one VM: its meters, and its requests.

use std::sync::Arc;

use neoc_abi::{
    Call, Completion, Operation, OperationError, Outcome, Reply, event::Finish, log::Record, narrowing, wire,
};
use wasmtime::{Error, Memory, Result};
use wasmtime_wasi::{WasiCtxBuilder, p1::WasiP1Ctx};

use super::{
    clocks::Clocks,
    limiter::MemoryLimiter,
    meter::CpuMeter,
    requests::{Requests, StalledForTooLong},
};
use crate::{broker, capability::module::Folder, script_log::ScriptLog};

/// Most bytes that a guest gets from one call for random bytes.
const MAX_RANDOM_BYTES: u64 = 65_536;

/// The store data of one VM.
pub struct State {
    /// Made when it is first asked for: few guests ever do.
    wasi: Option<Box<WasiP1Ctx>>,
    pub(super) clocks: Clocks,
    pub(super) limiter: MemoryLimiter,
    pub(super) meter: Arc<CpuMeter>,
    /// The guest's memory; set right after instantiation, before any guest code of ours runs.
    pub(super) memory: Option<Memory>,
    /// What is announced to the guest, for `receive` to fetch.
    pub(super) announced: Option<Vec<u8>>,
    /// What a load ended with.
    loaded: Option<Box<Finish>>,
    /// Longest outcome that fits into the VM, in bytes.
    max_outcome_bytes: usize,
    /// Where lines go that are no request's.
    log: ScriptLog,
    reach: Reach,
}

/// What a VM's operations can reach.
pub enum Reach {
    /// Nothing: there is no script in it.
    Nothing,
    /// While a script is loaded or checked: its own modules. They are read at once, on the script worker; a
    /// load has nothing else to wait for, and nobody waits behind it for longer than for its computing.
    Modules(Arc<Folder>),
    /// All that the policy allows to each of these.
    Requests(Requests),
}

impl State {
    /// A state for a VM with `memory_bytes` of memory.
    pub fn new(memory_bytes: usize, meter: Arc<CpuMeter>, log: ScriptLog, reach: Reach) -> Self {
        let limiter = MemoryLimiter::new(memory_bytes);
        Self {
            wasi: None,
            clocks: Clocks::starting_now(),
            limiter,
            meter,
            memory: None,
            announced: None,
            loaded: None,
            max_outcome_bytes: memory_bytes / 2,
            log,
            reach,
        }
    }

    /// WASI's floor: what Rust's and C's libraries in the guest link to. It opens nothing.
    pub(super) fn wasi(&mut self) -> &mut WasiP1Ctx {
        self.wasi.get_or_insert_with(|| {
            let mut floor = WasiCtxBuilder::new();
            floor
                .monotonic_clock(self.clocks)
                .wall_clock(self.clocks)
                .max_random_size(MAX_RANDOM_BYTES)
                .allow_tcp(false)
                .allow_udp(false)
                .allow_ip_name_lookup(false);
            Box::new(floor.build_p1())
        })
    }

    pub(super) fn memory(&self) -> Result<Memory> {
        self.memory.ok_or_else(|| Error::msg("the guest called the host before it was instantiated"))
    }

    /// The requests of this VM, where it has a script.
    pub(super) fn requests(&mut self) -> Option<&mut Requests> {
        match &mut self.reach {
            Reach::Requests(requests) => Some(requests),
            Reach::Modules(_) | Reach::Nothing => None,
        }
    }

    pub(super) fn submit(&mut self, number: u32, id: u32, call: Call) -> Option<Outcome> {
        match (&mut self.reach, call.operation) {
            (Reach::Requests(requests), operation) => requests.submit(number, id, Call { operation, ..call }),
            (Reach::Modules(folder), Operation::Module(operation)) => {
                let permit = broker::module::Permit::while_loading(operation);
                Some(permit.and_then(|permit| folder.find_now(permit)).map(Reply::Module))
            }
            (Reach::Modules(_), Operation::Narrow(question)) => {
                let checked = broker::narrowing::check(&question);
                Some(checked.map(|()| Reply::Narrow(narrowing::Reply::Checked)))
            }
            (Reach::Modules(_) | Reach::Nothing, _) => {
                Some(Err(OperationError::invalid("no operation is possible here: the script is being loaded")))
            }
        }
    }

    pub(super) fn cancel(&mut self, number: u32, id: u32, confirm: bool) {
        if let Some(requests) = self.requests() {
            requests.cancel(number, id, confirm);
        }
    }

    pub(super) fn finish(&mut self, number: u32, finish: Finish, n_left: u32) {
        match &mut self.reach {
            Reach::Requests(requests) => requests.finish(number, finish, n_left),
            Reach::Modules(_) | Reach::Nothing => self.loaded = Some(Box::new(finish)),
        }
    }

    pub(super) fn over(&mut self, number: u32) {
        if let Some(requests) = self.requests() {
            requests.over(number);
        }
    }

    /// How a load ended, once.
    pub(super) fn take_loaded(&mut self) -> Option<Finish> {
        self.loaded.take().map(|finish| *finish)
    }

    /// Keeps bytes for `receive`, and gives their length.
    pub(super) fn announce(&mut self, bytes: Vec<u8>) -> Result<u32> {
        let length = i32::try_from(bytes.len())?.cast_unsigned();
        self.announced = Some(bytes);
        Ok(length)
    }

    /// See [`Requests::next_batch`].
    pub(super) async fn next_batch(&mut self) -> Option<(u32, Vec<Completion>)> {
        let most_bytes = self.max_outcome_bytes;
        let (number, batch) = self.requests()?.next_batch().await?;
        Some((number, within_all(most_bytes, batch)))
    }

    /// See [`Requests::wait`].
    pub(super) async fn wait(
        &mut self,
        number: u32,
        of_any: bool,
    ) -> Result<Option<Vec<Completion>>, StalledForTooLong> {
        let most_bytes = self.max_outcome_bytes;
        let Some(requests) = self.requests() else { return Ok(None) };
        let batch = requests.wait(number, of_any).await?;
        Ok(batch.map(|batch| within_all(most_bytes, batch)))
    }

    pub(super) fn stall(&mut self, number: u32, place: String) {
        if let Some(requests) = self.requests() {
            requests.stall(number);
        }
        self.log_of(number).stall(place);
    }

    pub(super) fn log(&mut self, number: u32, record: Record) {
        self.log_of(number).write(record);
    }

    fn log_of(&self, number: u32) -> &ScriptLog {
        let of_request = match &self.reach {
            Reach::Requests(requests) => requests.log(number),
            Reach::Modules(_) | Reach::Nothing => None,
        };
        of_request.unwrap_or(&self.log)
    }
}

fn within_all(limit_bytes: usize, batch: Vec<Completion>) -> Vec<Completion> {
    batch.into_iter().map(|completion| within(limit_bytes, completion)).collect()
}

/// Cuts an outcome that is larger than what a guest can take in: a body that does not fit is an error of
/// its operation, not the end of the VM.
fn within(limit_bytes: usize, completion: Completion) -> Completion {
    let Completion { id, outcome } = completion;
    let outcome = match outcome {
        outcome if wire::encoded_bytes(&outcome) > limit_bytes => Err(OperationError::limit(
            "memory",
            format!("the reply is larger than the {limit_bytes} bytes that fit into the script's memory"),
        )),
        other => other,
    };
    Completion { id, outcome }
}
