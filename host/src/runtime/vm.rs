//! One Luau VM: an instance of the guest and the calls into it.

mod lives;

use std::{sync::Arc, time::Duration};

use neoc_abi::{
    Completion, OperationError,
    event::{Bundle, Finish, Terms, Written},
    wire,
};
use wasmtime::{
    Error, Extern, Global, Instance, InstancePre, Module, ModuleExport, Result, Store, Trap, TypedFunc, UpdateDeadline,
    Val, WasmParams, WasmResults,
};

pub use self::lives::{FOLD_AFTER, Parked, Parking};
use super::{
    image,
    memory::Lease,
    meter::{CpuBudget, CpuMeter, Metered},
    preempt::{Interrupt, Target},
    requests::Requests,
    state::State,
    tenant_image::SharedImage,
};

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
    target: Option<Arc<Target>>,
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
    /// Whose it is while no request has it: it may not run at all.
    meter: Arc<CpuMeter>,
    memory_bytes: usize,
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
    fn target(&self, base: *mut u8, meter: &Arc<CpuMeter>) -> Option<Arc<Target>> {
        match self {
            Self::Safepoint(interrupt) => Some(Arc::new(Target::new(base, *interrupt, Arc::clone(meter)))),
            Self::Epoch => None,
        }
    }
}

impl Calls {
    fn start(&self) -> &TypedFunc<Message, i32> {
        &self.start
    }

    fn complete(&self) -> &TypedFunc<Message, i32> {
        &self.complete
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
    pub async fn instantiate(guest: &Guest, preemption: &Preempt, state: State) -> Result<Box<Self>> {
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
        let nobody = CpuMeter::new(CpuBudget::new(Duration::ZERO));
        let begun_with = Begun { globals, meter: nobody, memory_bytes: memory.data_size(&store) };
        let (loaded, leases) = (None, Vec::new());
        let (is_sound, is_folded, n_lives) = (true, false, 1);
        Ok(Box::new(Self {
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
        }))
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
        self.call(Calls::start, event.start(terms)?, Room::Given).await?.ok_or_else(no_room)
    }

    /// As [`Vm::start`], beside what the VM is busy with. None: it has no room for it.
    ///
    /// # Errors
    /// A trap, such as [`super::meter::CpuExhausted`].
    pub async fn start_beside(&mut self, event: Written, terms: &Terms) -> Result<Option<u32>> {
        let bytes = event.start(terms)?;
        // Also for what comes of a small one: beside many others there may be little left.
        let room_bytes = bytes.len().max(SMALL_BYTES);
        // The message, what is read from it, and as much again. So far a memory that is not full can grow.
        let room = if self.can_grow(4 * room_bytes)? { Room::Given } else { Room::AskedFor(room_bytes) };
        self.call(Calls::start, bytes, room).await
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
        let bytes = wire::encode(&batch)?;
        let room = if bytes.len() > SMALL_BYTES { Room::AskedFor(bytes.len()) } else { Room::Given };
        if let Some(n_waiting) = self.call(Calls::complete, bytes, room).await? {
            return Ok(n_waiting);
        }
        let large = |completion: &&mut Completion| wire::encoded_bytes(&completion.outcome) > SMALL_BYTES;
        for completion in batch.iter_mut().filter(large) {
            let message = "the reply does not fit into what is left of the script's memory";
            completion.outcome = Err(OperationError::limit("memory", message));
        }
        self.call(Calls::complete, wire::encode(&batch)?, Room::Given).await?.ok_or_else(no_room)
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

    /// Whether its memory may become larger by so much.
    fn can_grow(&self, bytes: usize) -> Result<bool> {
        let grown_bytes = self.memory()?.len().saturating_add(bytes);
        Ok(self.store.data().limiter.allows(grown_bytes))
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
    async fn call(
        &mut self,
        function: fn(&Calls) -> &TypedFunc<Message, i32>,
        bytes: Vec<u8>,
        room: Room,
    ) -> Result<Option<u32>> {
        let room = match room {
            Room::AskedFor(room) => u32::try_from(room)?,
            Room::Given => 0,
        };
        let length = self.store.data_mut().announce(bytes)?;
        // Lent and not cloned: a clone counts itself in four places that all threads share.
        let call =
            async |store: &mut Store<State>, calls: &Calls| function(calls).call_async(store, (length, room)).await;
        let n_waiting = self.enter_with(call).await?;
        Ok(u32::try_from(n_waiting).ok())
    }

    /// As [`Vm::enter_with`], for a function that is called less often.
    async fn enter<R>(&mut self, call: impl AsyncFnOnce(&mut Store<State>) -> Result<R>) -> Result<R> {
        self.enter_with(async |store: &mut Store<State>, _: &Calls| call(store).await).await
    }

    /// Runs guest code, metered and watched.
    async fn enter_with<R>(&mut self, call: impl AsyncFnOnce(&mut Store<State>, &Calls) -> Result<R>) -> Result<R> {
        if self.target.is_none() {
            // A tick that passed while the VM was parked is not this slice's.
            self.store.set_epoch_deadline(1);
        }
        self.meter.check_between_slices()?;
        self.unfold()?;
        // Also if this future is dropped meanwhile.
        self.is_sound = false;
        let called = Metered::new(call(&mut self.store, &self.calls), &self.meter, self.target.as_ref()).await;
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
