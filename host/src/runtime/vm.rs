//! One Luau VM: an instance of the guest and the calls into it.

use std::{io, sync::Arc, time::Duration};

use neoc_abi::{
    Completion, OperationError,
    event::{Bundle, Finish, Terms, Written},
    wire,
};
use wasmtime::{
    Error, Extern, Global, Instance, InstancePre, Module, ModuleExport, Result, Store, Trap, TypedFunc, UpdateDeadline,
    Val, WasmParams, WasmResults,
};

use super::{
    image,
    memory::{Difference, Lease, Witness},
    meter::{CpuBudget, CpuMeter, Metered},
    preempt::{Interrupt, Target},
    requests::Requests,
    state::{Reach, State},
    tenant_image::SharedImage,
};
use crate::script_log::ScriptLog;

/// A message that the guest is to fetch: how long it is, and for how many bytes it is to have room first, see [`Room`].
type Message = (u32, u32);

/// Messages up to this size always find room, in bytes: the script's own heap leaves as much.
const SMALL_BYTES: usize = 64 * 1024;

/// Whether there is room in the guest for a message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    /// It is small, or the VM is fresh.
    Given,
    /// The guest is to say first whether it has as much as this, in bytes; without, it would come to its end.
    AskedFor(usize),
}

fn no_room() -> Error {
    Error::msg("the guest has no room for a small message")
}

/// After so many requests, and parts of requests, a VM is ended, with what wasmtime keeps for its exceptions.
pub const MAX_LIVES: u32 = 512;

/// A VM that has waited for so long is folded, see [`Vm::fold`]. Tests wait for nothing as long.
pub const FOLD_AFTER: Duration = if cfg!(test) { Duration::from_millis(1) } else { Duration::from_secs(1) };

/// What stops a running VM; see [`crate::policy::Preemption`].
pub enum Preempt {
    /// The watcher, through Luau's interrupt and the safepoint page.
    Safepoint(Interrupt),
    /// wasmtime's epochs.
    Epoch,
}

/// The base image, ready to make instances of.
pub struct Guest {
    image: InstancePre<State>,
    exports: Arc<Exports>,
}

/// Where the guest's exports are, so that no VM has to look for their names.
struct Exports {
    memory: ModuleExport,
    load: ModuleExport,
    start: ModuleExport,
    complete: ModuleExport,
    cancel_request: ModuleExport,
    stack_end: ModuleExport,
    interrupt_offset: ModuleExport,
    interrupt_function: ModuleExport,
    /// Those that the guest can change.
    globals: Vec<ModuleExport>,
}

/// A VM. After any error it must be dropped: a trapped store is never used again.
pub struct Vm {
    store: Store<State>,
    instance: Instance,
    exports: Arc<Exports>,
    calls: Calls,
    meter: Arc<CpuMeter>,
    /// How the watcher stops it. None where epochs do.
    target: Option<Target>,
    begun_with: Begun,
    /// The script that its memory has, if it has one; see [`Vm::give`].
    loaded: Option<SharedImage>,
    /// Its places, but for those that its witness still has: what it was lent in this life.
    leases: Vec<Arc<dyn Lease>>,
    /// Whether every call into it has come to its end.
    is_sound: bool,
    is_folded: bool,
    n_lives: u32,
}

/// What nearly every request calls.
struct Calls {
    start: TypedFunc<Message, i32>,
    complete: TypedFunc<Message, i32>,
}

/// How a VM was when it was fresh, apart from the bytes of its memory.
struct Begun {
    globals: Vec<(Global, Val)>,
    memory_bytes: usize,
}

/// A request that waits, without a VM: what it had in one.
pub struct Parked {
    state: State,
    globals: Vec<Val>,
    /// What the VM's memory had that one with the script has not.
    memory: Difference,
    image: SharedImage,
}

impl Parked {
    /// As [`Vm::next_batch`].
    pub async fn next_batch(&mut self) -> Option<(u32, Vec<Completion>)> {
        self.state.next_batch().await
    }

    /// What it is to go on with: its script and its state, then for [`Vm::resume`] its globals and its memory.
    pub fn into_parts(self) -> (SharedImage, State, Vec<Val>, Difference) {
        (self.image, self.state, self.globals, self.memory)
    }
}

impl Guest {
    /// Looks for the exports.
    ///
    /// # Errors
    /// When the guest lacks one.
    pub fn new(image: InstancePre<State>) -> Result<Self> {
        let exports = Arc::new(Exports::of(image.module())?);
        Ok(Self { image, exports })
    }
}

impl Preempt {
    /// How the watcher stops the VM that is entered by this thread now, whose memory begins at `base`.
    fn target(&self, base: *mut u8, meter: &Arc<CpuMeter>) -> Option<Target> {
        match self {
            Self::Safepoint(interrupt) => Some(Target::new(base, *interrupt, Arc::clone(meter))),
            Self::Epoch => None,
        }
    }
}

impl Exports {
    fn of(module: &Module) -> Result<Self> {
        let find = |name: &str| {
            module.get_export_index(name).ok_or_else(|| Error::msg(format!("the guest has no export {name:?}")))
        };
        let globals = module.exports().map(|export| export.name()).filter(|name| name.starts_with(image::GLOBAL));
        let globals = globals.map(find).collect::<Result<_>>()?;
        Ok(Self {
            memory: find("memory")?,
            load: find("load")?,
            start: find("start")?,
            complete: find("complete")?,
            cancel_request: find("cancel_request")?,
            stack_end: find("stack_end")?,
            interrupt_offset: find("interrupt_offset")?,
            interrupt_function: find("interrupt_function")?,
            globals,
        })
    }
}

impl Vm {
    /// A fresh VM from the base image, with no script in it.
    ///
    /// # Errors
    /// When the pool has no free slot, or the guest's memory is none.
    pub async fn instantiate(guest: &Guest, preemption: &Preempt, state: State) -> Result<Self> {
        let meter = Arc::clone(&state.meter);
        let mut store = Store::new(guest.image.module().engine(), state);
        store.limiter(|state| &mut state.limiter);
        if matches!(preemption, Preempt::Epoch) {
            store.epoch_deadline_callback(|context| {
                // Over budget is a trap, which no `pcall` in the guest can catch.
                context.data().meter.check()?;
                Ok(UpdateDeadline::Yield(1))
            });
            store.set_epoch_deadline(1);
        }
        let instance = guest.image.instantiate_async(&mut store).await?;
        let exports = Arc::clone(&guest.exports);
        let memory = instance.get_module_export(&mut store, &exports.memory).and_then(Extern::into_memory);
        let memory = memory.ok_or_else(|| Error::msg("the guest's memory is none"))?;
        store.data_mut().memory = Some(memory);
        let globals = exports.globals.iter().map(|global| {
            let global = instance.get_module_export(&mut store, global).and_then(Extern::into_global);
            let global = global.ok_or_else(|| Error::msg("a global of the guest's is none"))?;
            Ok((global, global.get(&mut store)))
        });
        let globals = globals.collect::<Result<_>>()?;
        let calls = Calls {
            start: exported(&mut store, &instance, &exports.start)?,
            complete: exported(&mut store, &instance, &exports.complete)?,
        };
        let target = preemption.target(memory.data_ptr(&store), &meter);
        let begun_with = Begun { globals, memory_bytes: memory.data_size(&store) };
        let (loaded, leases) = (None, Vec::new());
        let (is_sound, is_folded, n_lives) = (true, false, 1);
        Ok(Self {
            store,
            instance,
            exports,
            calls,
            meter,
            target,
            begun_with,
            loaded,
            leases,
            is_sound,
            is_folded,
            n_lives,
        })
    }

    /// Makes it as new, for [`Vm::begin`]. None where that cannot be, see [`super::renewal`].
    pub fn renew(mut self) -> Option<Self> {
        if !self.is_renewable() {
            return None;
        }
        // First all that its request had under way, and what that had used up.
        drop(self.take_state().ok()?);
        let witness = Witness::current()?;
        self.leases.extend(witness.take_leases());
        self.put_back(witness.is_certain()).then_some(self)
    }

    /// Takes out what a request has in it that waits, and makes it as new with the request's script in it. The request
    /// goes on in any VM with that script: see [`Vm::resume`]. To be called in the poll of the request, between two
    /// calls. Gives the VM as it is if that cannot be, or if there is so much to take out that it had better stay.
    pub fn park(mut self) -> Result<(Parked, Option<Self>), Box<Self>> {
        let (Some(image), true, false) = (self.loaded.clone(), self.is_renewable(), self.is_folded) else {
            return Err(Box::new(self));
        };
        let globals: Vec<Val> = self.begun_with.globals.iter().map(|(global, _)| global.get(&mut self.store)).collect();
        // A reference is its own store's.
        let are_numbers =
            globals.iter().all(|global| matches!(global, Val::I32(_) | Val::I64(_) | Val::F32(_) | Val::F64(_)));
        let Some(witness) = Witness::current().filter(|_| are_numbers) else { return Err(Box::new(self)) };
        self.leases.extend(witness.take_leases());
        let is_certain = witness.is_certain();
        let mut emptied =
            self.leases.iter().filter_map(|lease| lease.empty(is_certain, image.difference()).transpose());
        let memory = match emptied.next() {
            Some(Ok(memory)) => memory,
            Some(Err(error)) => {
                tracing::warn!("a VM that waits keeps its memory: {error}");
                return Err(Box::new(self));
            }
            None => return Err(Box::new(self)),
        };
        drop(emptied);
        let Ok(state) = self.take_state() else { return Err(Box::new(self)) };
        let vm = self.put_back(is_certain).then_some(self);
        Ok((Parked { state, globals, memory, image }, vm))
    }

    /// Lets a request go on that was parked. To be called with one that has its script, before the first call.
    ///
    /// # Errors
    /// None in practice. Then it must not be used.
    pub fn resume(&mut self, globals: &[Val], memory: &Difference) -> Result<()> {
        memory.apply(self.memory_mut()?)?;
        for ((global, _), value) in self.begun_with.globals.iter().zip(globals) {
            global.set(&mut self.store, *value)?;
        }
        Ok(())
    }

    /// Gives it a tenant's script, instead of what it may have. It has just begun; `base`: the base image's memory.
    ///
    /// # Errors
    /// When the tenant's memory limit is below what the script holds once loaded.
    pub fn give(&mut self, image: &SharedImage, base: &[u8]) -> Result<()> {
        match self.loaded.take() {
            Some(loaded) if Arc::ptr_eq(&loaded, image) => {}
            loaded => {
                if let Some(loaded) = loaded {
                    loaded.difference().revert(base, self.memory_mut()?)?;
                }
                image.restore(self)?;
            }
        }
        self.loaded = Some(Arc::clone(image));
        Ok(())
    }

    /// Whether it has this script.
    pub fn has(&self, image: &SharedImage) -> bool {
        self.loaded.as_ref().is_some_and(|loaded| Arc::ptr_eq(loaded, image))
    }

    /// Whether it can be made as new.
    fn is_renewable(&self) -> bool {
        let has_grown = || {
            let memory = self.store.data().memory();
            memory.map_or(true, |memory| memory.data_size(&self.store) != self.begun_with.memory_bytes)
        };
        self.is_sound && self.n_lives < MAX_LIVES && !has_grown()
    }

    /// Takes all that the host keeps for it.
    fn take_state(&mut self) -> Result<State> {
        let memory = self.store.data().memory()?;
        self.meter = CpuMeter::new(CpuBudget::new(Duration::ZERO));
        let mut nothing = State::new(0, Arc::clone(&self.meter), ScriptLog::discard(), Reach::Nothing);
        nothing.memory = Some(memory);
        self.target = None;
        Ok(std::mem::replace(self.store.data_mut(), nothing))
    }

    /// Makes its globals and its places as new. Without success it must not be used again.
    fn put_back(&mut self, is_certain: bool) -> bool {
        self.n_lives += 1;
        for (global, value) in &self.begun_with.globals {
            if let Err(error) = global.set(&mut self.store, *value) {
                tracing::error!("a VM cannot be made as new: {error}");
                return false;
            }
        }
        let loaded = self.loaded.as_ref().map(|image| image.difference());
        let mut is_loaded = true;
        let renewed = self.leases.iter().try_for_each(|lease| {
            is_loaded &= lease.renew(is_certain, loaded)?;
            io::Result::Ok(())
        });
        if !is_loaded {
            self.loaded = None;
        }
        self.is_folded = false;
        renewed.inspect_err(|error| tracing::error!("a VM cannot be made as new: {error}")).is_ok()
    }

    /// Begins another life, of one that was made as new.
    ///
    /// # Errors
    /// When its memory is more than it may have now.
    pub fn begin(mut self, preemption: &Preempt, mut state: State) -> Result<Self> {
        if !state.limiter.allows(self.begun_with.memory_bytes) {
            return Err(Error::msg("the base image takes more memory than the limit"));
        }
        let witness = Witness::current();
        self.leases.iter().for_each(|lease| lease.hand_to(witness.clone()));
        let memory = self.store.data().memory()?;
        state.memory = Some(memory);
        self.meter = Arc::clone(&state.meter);
        *self.store.data_mut() = state;
        self.target = preemption.target(memory.data_ptr(&self.store), &self.meter);
        Ok(self)
    }

    /// Has it take as little memory as it can until the next call into it: of its pages only the lines are kept that
    /// differ from the base image. To be called in the poll of its request, between two calls.
    pub fn fold(&mut self) {
        let Some(witness) = Witness::current() else { return };
        // What is taken back then becomes the VM's own again, and nobody has to count it.
        witness.doubt();
        self.leases.extend(witness.take_leases());
        self.is_folded = true;
        tracing::debug!(target: "neoc::memory", "a VM that waits is folded");
        for lease in &self.leases {
            if let Err(error) = lease.fold() {
                tracing::warn!("a VM that waits keeps its memory: {error}");
            }
        }
    }

    fn unfold(&mut self) -> Result<()> {
        if std::mem::take(&mut self.is_folded) {
            self.leases.iter().try_for_each(|lease| lease.unfold())?;
        }
        Ok(())
    }

    /// Where the guest's stack ends; it begins at 0.
    ///
    /// # Errors
    /// A trap.
    pub async fn stack_end(&mut self) -> Result<usize> {
        let stack_end: TypedFunc<(), u32> = self.function(|exports| &exports.stack_end)?;
        Ok(usize::try_from(self.enter(async |store| stack_end.call_async(store, ()).await).await?)?)
    }

    /// Where Luau's interrupt is, and what to write there.
    ///
    /// # Errors
    /// A trap.
    pub async fn interrupt(&mut self) -> Result<Interrupt> {
        let offset: TypedFunc<(), u32> = self.function(|exports| &exports.interrupt_offset)?;
        let function: TypedFunc<(), u32> = self.function(|exports| &exports.interrupt_function)?;
        let offset = self.enter(async |store| offset.call_async(store, ()).await).await?;
        let function = self.enter(async |store| function.call_async(store, ()).await).await?;
        Ok(Interrupt { offset, function })
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
        let load: TypedFunc<u32, ()> = self.function(|exports| &exports.load)?;
        let length = self.store.data_mut().announce(wire::encode(bundle)?)?;
        self.enter(async |store| load.call_async(store, length).await).await?;
        let loaded = self.store.data_mut().take_loaded();
        loaded.ok_or_else(|| Error::msg("the guest did not say how `load` ended"))
    }

    /// Starts the script's work. Gives how many of its tasks wait for [`Vm::complete`].
    ///
    /// # Errors
    /// A trap, such as [`super::meter::CpuExhausted`].
    pub async fn start(&mut self, event: Written, terms: &Terms) -> Result<u32> {
        let function = self.calls.start.clone();
        self.call(&function, event.start(terms)?, Room::Given).await?.ok_or_else(no_room)
    }

    /// As [`Vm::start`], beside what the VM is busy with. None: it has no room for it.
    ///
    /// # Errors
    /// A trap, such as [`super::meter::CpuExhausted`].
    pub async fn start_beside(&mut self, event: Written, terms: &Terms) -> Result<Option<u32>> {
        let function = self.calls.start.clone();
        let bytes = event.start(terms)?;
        // Also for what comes of a small one: beside many others there may be little left.
        let room = Room::AskedFor(bytes.len().max(SMALL_BYTES));
        self.call(&function, bytes, room).await
    }

    /// Cancels all tasks of a request. Gives how many tasks of any wait now.
    ///
    /// # Errors
    /// A trap, such as [`super::meter::CpuExhausted`].
    pub async fn cancel_request(&mut self, number: u32) -> Result<u32> {
        let function: TypedFunc<u32, u32> = self.function(|exports| &exports.cancel_request)?;
        self.enter(async |store| function.call_async(store, number).await).await
    }

    /// Delivers finished operations. Gives how many tasks wait now. Replies that the guest has no room for
    /// become errors of their operations.
    ///
    /// # Errors
    /// A trap, such as [`super::meter::CpuExhausted`].
    pub async fn complete(&mut self, mut batch: Vec<Completion>) -> Result<u32> {
        let function = self.calls.complete.clone();
        let bytes = wire::encode(&batch)?;
        let room = if bytes.len() > SMALL_BYTES { Room::AskedFor(bytes.len()) } else { Room::Given };
        if let Some(n_waiting) = self.call(&function, bytes, room).await? {
            return Ok(n_waiting);
        }
        let large = |completion: &&mut Completion| wire::encoded_bytes(&completion.outcome) > SMALL_BYTES;
        for completion in batch.iter_mut().filter(large) {
            let message = "the reply does not fit into what is left of the script's memory";
            completion.outcome = Err(OperationError::limit("memory", message));
        }
        self.call(&function, wire::encode(&batch)?, Room::Given).await?.ok_or_else(no_room)
    }

    /// See [`super::requests::Requests::next_batch`].
    pub async fn next_batch(&mut self) -> Option<(u32, Vec<Completion>)> {
        self.store.data_mut().next_batch().await
    }

    /// The requests that it has.
    ///
    /// # Errors
    /// When it has no script.
    pub fn requests(&mut self) -> Result<&mut Requests> {
        self.store.data_mut().requests().ok_or_else(|| Error::msg("a VM without a script has no requests"))
    }

    /// Charges `budget` for what it does from now on.
    pub fn charge_to(&self, budget: &Arc<CpuBudget>) {
        self.meter.charge_to(budget);
    }

    /// One of the guest's functions.
    fn function<P, R>(&mut self, export: impl FnOnce(&Exports) -> &ModuleExport) -> Result<TypedFunc<P, R>>
    where
        P: WasmParams,
        R: WasmResults,
    {
        exported(&mut self.store, &self.instance, export(&self.exports))
    }

    /// Hands a message over. Gives how many tasks wait then. None: the guest was asked whether it has room, and has not.
    async fn call(&mut self, function: &TypedFunc<Message, i32>, bytes: Vec<u8>, room: Room) -> Result<Option<u32>> {
        let room = match room {
            Room::AskedFor(room) => u32::try_from(room)?,
            Room::Given => 0,
        };
        let length = self.store.data_mut().announce(bytes)?;
        let n_waiting = self.enter(async |store| function.call_async(store, (length, room)).await).await?;
        Ok(u32::try_from(n_waiting).ok())
    }

    /// Runs guest code, metered and watched.
    async fn enter<R>(&mut self, call: impl AsyncFnOnce(&mut Store<State>) -> Result<R>) -> Result<R> {
        if self.target.is_none() {
            // A tick that passed while the VM was parked is not this slice's.
            self.store.set_epoch_deadline(1);
        }
        self.meter.check_between_slices()?;
        self.unfold()?;
        let (meter, target) = (Arc::clone(&self.meter), self.target.clone());
        // Also if this future is dropped meanwhile.
        self.is_sound = false;
        let called = Metered::new(call(&mut self.store), meter, target).await;
        self.is_sound = called.is_ok();
        called.map_err(|error| {
            // A kill closes the safepoint page, and the guest's next load from it traps.
            let killed = error.downcast_ref() == Some(&Trap::MemoryOutOfBounds) && self.target.is_some();
            if killed { self.meter.check_between_slices().err().map_or(error, Error::from) } else { error }
        })
    }
}

/// One of a guest's functions.
fn exported<P, R>(store: &mut Store<State>, instance: &Instance, export: &ModuleExport) -> Result<TypedFunc<P, R>>
where
    P: WasmParams,
    R: WasmResults,
{
    let function = instance.get_module_export(&mut *store, export).and_then(Extern::into_func);
    function.ok_or_else(|| Error::msg("an export of the guest is no function"))?.typed(&*store)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{memory::Witnessed, tests},
        *,
    };

    #[test]
    fn a_global_that_a_guest_has_changed_is_as_it_was_in_its_next_life() {
        let (runtime, io, _folder) = tests::runtime();
        io.block_on(Witnessed::new(async {
            let state = tests::state("a", Duration::from_secs(60));
            let mut vm = runtime.fresh(None, state).await.expect("there is a slot");
            let (stack_pointer, before) = *vm.begun_with.globals.first().expect("the guest has a stack");
            stack_pointer.set(&mut vm.store, Val::I32(16)).expect("is mutable");
            let mut vm = vm.renew().expect("has not run");
            assert_eq!(stack_pointer.get(&mut vm.store).i32(), before.i32());
            assert_ne!(before.i32(), Some(16));
        }));
    }
}
