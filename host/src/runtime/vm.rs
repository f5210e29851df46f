//! One Luau VM: an instance of the guest and the calls into it.

use std::sync::Arc;

use neoc_abi::{
    Completion, OperationError, Outcome,
    event::{Bundle, Finish, Start},
    wire,
};
use serde::Serialize;
use wasmtime::{Error, InstancePre, Result, Store, TypedFunc, UpdateDeadline};

use super::{
    meter::{CpuMeter, Metered},
    state::State,
};

/// A message to the guest: where it lies and how long it is.
type Message = (u32, u32);

/// A VM. After any error it must be dropped: a trapped store is never used again.
pub struct Vm {
    store: Store<State>,
    meter: Arc<CpuMeter>,
    allocate: TypedFunc<u32, u32>,
    load: TypedFunc<Message, ()>,
    start: TypedFunc<Message, ()>,
    complete: TypedFunc<Message, ()>,
}

impl Vm {
    /// A fresh VM from the base image, with no script in it.
    ///
    /// # Errors
    /// When the pool has no free slot, or the guest lacks an export.
    pub async fn instantiate(image: &InstancePre<State>, state: State) -> Result<Self> {
        let meter = Arc::clone(&state.meter);
        let mut store = Store::new(image.module().engine(), state);
        store.limiter(|state| &mut state.limiter);
        store.epoch_deadline_callback(|context| {
            // Over budget is a trap, which no `pcall` in the guest can catch.
            context.data().meter.check()?;
            Ok(UpdateDeadline::Yield(1))
        });
        store.set_epoch_deadline(1);
        let instance = image.instantiate_async(&mut store).await?;
        store.data_mut().memory = instance.get_memory(&mut store, "memory");
        Ok(Self {
            allocate: instance.get_typed_func(&mut store, "allocate")?,
            load: instance.get_typed_func(&mut store, "load")?,
            start: instance.get_typed_func(&mut store, "start")?,
            complete: instance.get_typed_func(&mut store, "complete")?,
            meter,
            store,
        })
    }

    /// The VM's linear memory.
    ///
    /// # Errors
    /// When the guest exports no memory.
    pub fn memory(&self) -> Result<&[u8]> {
        Ok(self.store.data().memory()?.data(&self.store))
    }

    /// The VM's linear memory, to write.
    ///
    /// # Errors
    /// When the guest exports no memory.
    pub fn memory_mut(&mut self) -> Result<&mut [u8]> {
        Ok(self.store.data().memory()?.data_mut(&mut self.store))
    }

    /// Adds `wasm_pages` of 64 KiB to the memory.
    ///
    /// # Errors
    /// When the VM's limit does not allow it.
    pub fn grow(&mut self, wasm_pages: u64) -> Result<()> {
        self.store.data().memory()?.grow(&mut self.store, wasm_pages)?;
        Ok(())
    }

    /// Compiles the tenant's script in the guest and, in handler mode, runs its top level.
    ///
    /// # Errors
    /// A trap, such as [`super::meter::CpuExhausted`].
    pub async fn load(&mut self, bundle: &Bundle) -> Result<Finish> {
        let load = self.load.clone();
        self.call(&load, bundle).await?.ok_or_else(|| Error::msg("the guest did not say how `load` ended"))
    }

    /// Starts the script's work. None: all its tasks are parked until [`Vm::complete`].
    ///
    /// # Errors
    /// A trap, such as [`super::meter::CpuExhausted`].
    pub async fn start(&mut self, start: &Start) -> Result<Option<Finish>> {
        let function = self.start.clone();
        self.call(&function, start).await
    }

    /// Delivers finished operations. None: all tasks are parked again.
    ///
    /// # Errors
    /// A trap, such as [`super::meter::CpuExhausted`].
    pub async fn complete(&mut self, batch: &[Completion]) -> Result<Option<Finish>> {
        let function = self.complete.clone();
        self.call(&function, &batch).await
    }

    async fn call<T: Serialize>(&mut self, function: &TypedFunc<Message, ()>, message: &T) -> Result<Option<Finish>> {
        let bytes = wire::encode(message)?;
        let length = u32::try_from(bytes.len())?;
        // A tick that passed while the VM was parked is not this slice's.
        self.store.set_epoch_deadline(1);
        self.meter.check_between_slices()?;
        let meter = Arc::clone(&self.meter);
        let call = async {
            let pointer = self.allocate.call_async(&mut self.store, length).await?;
            let memory = self.store.data().memory()?;
            memory.write(&mut self.store, usize::try_from(pointer)?, &bytes)?;
            function.call_async(&mut self.store, (pointer, length)).await
        };
        Metered::new(call, meter).await?;
        Ok(self.store.data_mut().finish.take())
    }
}

/// Cuts a batch so that no single delivery is larger than what a guest can take in: a body that
/// does not fit is an error of its operation, not the end of the VM.
pub fn within(limit_bytes: usize, completion: Completion) -> Completion {
    let Completion { id, outcome } = completion;
    let outcome: Outcome = match outcome {
        Ok(reply) if wire::encoded_bytes(&reply) > limit_bytes => Err(OperationError::limit(
            "memory",
            format!("the reply is larger than the {limit_bytes} bytes that fit into the script's memory"),
        )),
        other => other,
    };
    Completion { id, outcome }
}
