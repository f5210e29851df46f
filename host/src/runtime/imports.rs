//! What the guest may call: the functions of the ABI, and WASI's floor.
//!
//! Every pointer and length is checked with checked arithmetic, sizes are capped before anything is
//! copied, and bytes are copied in once, so that what was checked is what is used.

use neoc_abi::{Call, event::Finish, log::Record, wire};
use serde::de::DeserializeOwned;
use wasmtime::{Caller, Error, Linker, Result};

use super::{
    clocks::{self, Clocks},
    state::State,
    turn,
};
use crate::policy::MAX_BODY_BYTES;

/// Longest message that a guest may hand over, in bytes: the longest body that a policy allows, and what
/// surrounds it.
const MAX_MESSAGE_BYTES: usize = MAX_BODY_BYTES + 1024 * 1024;

/// WASI's error number for what a host does not have.
const WASI_NOT_SUPPORTED: u32 = 58;

/// The answer of `submit` for an operation that goes on.
const PENDING: i32 = -1;

/// Everything that a guest may import.
///
/// # Errors
/// Never in practice: only when two functions have the same name.
pub fn link(linker: &mut Linker<State>) -> Result<()> {
    wasmtime_wasi::p1::add_to_linker_async(linker, State::wasi)?;
    // Each request reads a clock, and few need anything else of WASI.
    linker.allow_shadowing(true);
    linker.func_wrap("wasi_snapshot_preview1", "clock_time_get", clock_time_get)?;
    linker.allow_shadowing(false);
    linker.func_wrap("neoc", "submit", submit)?;
    linker.func_wrap("neoc", "receive", receive)?;
    linker.func_wrap("neoc", "cancel", cancel)?;
    linker.func_wrap_async("neoc", "wait", |caller: Caller<'_, State>, (number, of_any): (u32, u32)| {
        Box::new(wait(caller, number, of_any))
    })?;
    linker.func_wrap("neoc", "stall", stall)?;
    linker.func_wrap("neoc", "finish", finish)?;
    linker.func_wrap("neoc", "over", over)?;
    linker.func_wrap("neoc", "log", log)?;
    linker.func_wrap_async("neoc", "pause", |caller: Caller<'_, State>, ()| Box::new(pause(caller)))?;
    Ok(())
}

/// WASI's clocks, see [`super::clocks`]. The precision that is asked for changes nothing.
fn clock_time_get(mut caller: Caller<'_, State>, clock: u32, _precision: u64, pointer: u32) -> Result<u32> {
    let time = match clock {
        0 => Clocks::wall(),
        1 => caller.data().clocks.monotonic(),
        // CPU clocks of the process and the thread.
        _ => return Ok(WASI_NOT_SUPPORTED),
    };
    let memory = caller.data().memory()?;
    memory.write(&mut caller, usize::try_from(pointer)?, &clocks::as_nanoseconds(time).to_le_bytes())?;
    Ok(0)
}

/// Asks the broker for an operation. Answers [`PENDING`], or the length of an outcome for `receive`.
fn submit(mut caller: Caller<'_, State>, number: u32, id: u32, pointer: u32, length: u32) -> Result<i32> {
    let call: Call = read(&caller, pointer, length)?;
    let Some(outcome) = caller.data_mut().submit(number, id, call) else { return Ok(PENDING) };
    let bytes = wire::encode(&outcome)?;
    Ok(caller.data_mut().announce(bytes)?.cast_signed())
}

/// Copies what was announced last to `pointer`: a message for the export that runs, or what `submit` or `wait` brought.
fn receive(mut caller: Caller<'_, State>, pointer: u32) -> Result<()> {
    let bytes = caller.data_mut().announced.take().ok_or_else(|| Error::msg("receive without an announcement"))?;
    let memory = caller.data().memory()?;
    Ok(memory.write(&mut caller, usize::try_from(pointer)?, &bytes)?)
}

/// Stops an operation. If `confirm` is not 0, a completion comes once nothing of it is left.
fn cancel(mut caller: Caller<'_, State>, number: u32, id: u32, confirm: u32) {
    caller.data_mut().cancel(number, id, confirm != 0);
}

/// Stands still until operations of this request have finished, or of any if `of_any` is not 0; answers the length
/// of the batch for `receive`.
async fn wait(mut caller: Caller<'_, State>, number: u32, of_any: u32) -> Result<u32> {
    let batch = caller.data_mut().wait(number, of_any != 0).await?;
    let batch = batch.ok_or_else(|| Error::msg("wait without an operation"))?;
    let bytes = wire::encode(&batch)?;
    caller.data_mut().announce(bytes)
}

/// Counts that a VM is about to stand still, and logs where.
fn stall(mut caller: Caller<'_, State>, number: u32, pointer: u32, length: u32) -> Result<()> {
    let place = String::from_utf8_lossy(bytes(&caller, pointer, length)?).into_owned();
    caller.data_mut().stall(number, place);
    Ok(())
}

/// Takes the result of a load or a start, of which so many tasks go on.
fn finish(mut caller: Caller<'_, State>, number: u32, n_left: u32, pointer: u32, length: u32) -> Result<()> {
    let finish: Finish = read(&caller, pointer, length)?;
    caller.data_mut().finish(number, finish, n_left);
    Ok(())
}

/// Notes that the tasks that went on after a start's end have ended.
fn over(mut caller: Caller<'_, State>, number: u32) {
    caller.data_mut().over(number);
}

/// Takes a line for the tenant's log.
fn log(mut caller: Caller<'_, State>, number: u32, pointer: u32, length: u32) -> Result<()> {
    let record: Record = read(&caller, pointer, length)?;
    caller.data_mut().log(number, record);
    Ok(())
}

/// Called by Luau's interrupt: ends a guest that is over its budget, else lets others run.
async fn pause(caller: Caller<'_, State>) -> Result<()> {
    caller.data().meter.check()?;
    turn::end_here().await;
    Ok(())
}

/// Copies a message out of the guest's memory and decodes it.
fn read<T: DeserializeOwned>(caller: &Caller<'_, State>, pointer: u32, length: u32) -> Result<T> {
    Ok(wire::decode(bytes(caller, pointer, length)?)?)
}

/// A message as it lies in the guest's memory.
fn bytes<'a>(caller: &'a Caller<'_, State>, pointer: u32, length: u32) -> Result<&'a [u8]> {
    let (start, length) = (usize::try_from(pointer)?, usize::try_from(length)?);
    if length > MAX_MESSAGE_BYTES {
        return Err(Error::msg(format!("a message of {length} bytes is over {MAX_MESSAGE_BYTES}")));
    }
    let end = start.checked_add(length).ok_or_else(|| Error::msg("a message wraps round the address space"))?;
    let memory = caller.data().memory()?;
    memory.data(caller).get(start..end).ok_or_else(|| Error::msg("a message lies outside the memory"))
}
