//! A VM from one request to the next, and through the waits of one; see [`super::super::renewal`] for why that is safe.

use std::{sync::Arc, time::Duration};

use neoc_abi::Completion;
use wasmtime::{Error, Result, Val};

use super::{
    super::{
        memory::{Difference, Witness},
        state::{Reach, State},
        tenant_image::SharedImage,
    },
    Preempt, Vm,
};
use crate::script_log::ScriptLog;

/// After so many requests, and parts of requests, a VM is ended, with what wasmtime keeps for its exceptions.
const MAX_LIVES: u32 = 512;

/// A VM that has waited for so long is folded, see [`Vm::fold`]. Tests wait for nothing as long.
pub const FOLD_AFTER: Duration = if cfg!(test) { Duration::from_millis(1) } else { Duration::from_secs(1) };

/// What becomes of a VM whose request waits.
#[allow(clippy::large_enum_variant, reason = "it is taken apart where it is made")]
pub enum Parking {
    /// The request has no VM any more. The one that it had is as new, with the same script, unless the system refused.
    Left(Parked, Option<Box<Vm>>),
    /// The request stays in it.
    Stays(Box<Vm>),
}

/// A request that waits, without a VM: what it had in one.
pub struct Parked {
    state: State,
    globals: Vec<Val>,
    /// What the VM's memory had that one with the script has not.
    memory: Difference,
    image: SharedImage,
}

// === impl Parked ===

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

// === impl Vm ===

impl Vm {
    /// Makes it as new, for [`Vm::begin`]. None where that cannot be.
    pub fn renew(mut self: Box<Self>) -> Option<Box<Self>> {
        if !self.is_renewable() {
            return None;
        }
        // First all that its request had under way, and what that had used up.
        drop(self.take_state().ok()?);
        let witness = Witness::current()?;
        self.leases.extend(witness.take_leases());
        self.made_as_new(witness.is_certain(), None)
    }

    /// Takes out what a request has in it that waits, and makes it as new with the request's script in it. The request
    /// goes on in any VM with that script: see [`Vm::resume`]. It stays where that cannot be, or if there is so much to
    /// take out that it had better. To be called in the poll of the request, between two calls.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn park(mut self: Box<Self>) -> Result<Parking> {
        let (Some(image), true, false) = (self.loaded.clone(), self.is_renewable(), self.is_folded) else {
            return Ok(Parking::Stays(self));
        };
        let globals: Vec<Val> = self.begun_with.globals.iter().map(|(global, _)| global.get(&mut self.store)).collect();
        // A reference is its own store's.
        let is_number = |global: &Val| matches!(global, Val::I32(_) | Val::I64(_) | Val::F32(_) | Val::F64(_));
        let Some(witness) = Witness::current().filter(|_| globals.iter().all(is_number)) else {
            return Ok(Parking::Stays(self));
        };
        self.leases.extend(witness.take_leases());
        let is_certain = witness.is_certain();
        // One of its places holds the script.
        let mut emptied = None;
        for (index, lease) in self.leases.iter().enumerate() {
            if let Some(memory) = lease.empty(is_certain, image.difference(), image.stack_bytes())? {
                emptied = Some((index, memory));
                break;
            }
        }
        let Some((index, memory)) = emptied else { return Ok(Parking::Stays(self)) };
        tracing::debug!(target: "neoc::memory", n_bytes = memory.n_bytes(), "a request that waits has left its VM");
        let state = self.take_state()?;
        witness.rest();
        Ok(Parking::Left(Parked { state, globals, memory, image }, self.made_as_new(is_certain, Some(index))))
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

    /// Begins another life, of one that was made as new.
    ///
    /// # Errors
    /// When its memory is more than it may have now.
    pub fn begin(mut self: Box<Self>, preemption: &Preempt, mut state: State) -> Result<Box<Self>> {
        if !state.limiter.allows(self.begun_with.memory_bytes) {
            return Err(Error::msg("the base image takes more memory than the limit"));
        }
        let witness = Witness::current();
        if let Some(witness) = &witness {
            witness.wake();
        }
        self.leases.iter().for_each(|lease| lease.hand_to(witness.clone()));
        let memory = self.store.data().memory()?;
        state.memory = Some(memory);
        self.meter = Arc::clone(&state.meter);
        *self.store.data_mut() = state;
        self.target = preemption.target(memory.data_ptr(&self.store), &self.meter);
        Ok(self)
    }

    /// Gives it a tenant's script, instead of what it may have. It has just begun; `base`: the base image's memory.
    ///
    /// # Errors
    /// When the tenant's memory limit is below what the script holds once loaded.
    pub fn give(&mut self, image: &SharedImage, base: &[u8]) -> Result<()> {
        if self.has(image) {
            return Ok(());
        }
        if let Some(other) = self.loaded.take() {
            other.difference().revert(base, self.memory_mut()?)?;
        }
        image.restore(self)?;
        self.loaded = Some(Arc::clone(image));
        Ok(())
    }

    /// Whether it has this script.
    pub fn has(&self, image: &SharedImage) -> bool {
        self.loaded.as_ref().is_some_and(|loaded| Arc::ptr_eq(loaded, image))
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

    /// To be called before each call into it.
    pub(super) fn unfold(&mut self) -> Result<()> {
        if std::mem::take(&mut self.is_folded) {
            self.leases.iter().try_for_each(|lease| lease.unfold())?;
        }
        Ok(())
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
        self.meter = Arc::clone(&self.begun_with.meter);
        let mut nothing = State::new(0, Arc::clone(&self.meter), ScriptLog::discard(), Reach::Nothing);
        nothing.memory = Some(memory);
        self.target = None;
        Ok(std::mem::replace(self.store.data_mut(), nothing))
    }

    /// Makes it as new whose state was taken. `emptied`: which of its places is so already, and has the script.
    fn made_as_new(mut self: Box<Self>, is_certain: bool, emptied: Option<usize>) -> Option<Box<Self>> {
        let put_back = self.put_back(is_certain, emptied);
        put_back.inspect_err(|error| tracing::error!("a VM cannot be made as new: {error}")).ok()?;
        self.n_lives += 1;
        Some(self)
    }

    /// Makes its globals and its places as new. Without success it must not be used again.
    fn put_back(&mut self, is_certain: bool, emptied: Option<usize>) -> Result<()> {
        for (global, value) in &self.begun_with.globals {
            global.set(&mut self.store, *value)?;
        }
        let loaded = self.loaded.as_ref().map(|image| image.difference());
        let mut has_script = true;
        for (index, lease) in self.leases.iter().enumerate() {
            if emptied != Some(index) {
                has_script &= lease.renew(is_certain, loaded)?;
            }
        }
        if !has_script {
            self.loaded = None;
        }
        self.is_folded = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::super::{memory::Witnessed, tests},
        *,
    };

    #[test]
    fn a_global_that_a_guest_has_changed_is_as_it_was_in_its_next_life() {
        let (runtime, io, _folder) = tests::runtime();
        let image = io.block_on(tests::load(&runtime, "a"));
        io.block_on(Witnessed::new(async {
            let state = tests::state("a", Duration::from_secs(60));
            let mut vm = runtime.ready(&image, state).await.expect("there is a slot");
            let (stack_pointer, before) = *vm.begun_with.globals.first().expect("the guest has a stack");
            stack_pointer.set(&mut vm.store, Val::I32(16)).expect("is mutable");
            let mut vm = vm.renew().expect("has not run");
            assert_eq!(stack_pointer.get(&mut vm.store).i32(), before.i32());
            assert_ne!(before.i32(), Some(16));
        }));
    }

    #[test]
    fn a_vm_lives_for_so_many_requests_and_no_more() {
        let (runtime, io, _folder) = tests::runtime();
        let image = &io.block_on(tests::load(&runtime, "AAAAaaaaAAAAaaaa"));
        let is_left_after = |n_lives: u32| {
            for _ in 0..n_lives {
                io.block_on(Witnessed::new(async {
                    let vm = runtime
                        .ready(image, tests::state("a", Duration::from_secs(60)))
                        .await
                        .expect("there is a slot");
                    runtime.renewed.keep(vm);
                }));
            }
            runtime.renewed.take(image).is_some()
        };
        assert!(is_left_after(MAX_LIVES - 1));
        assert!(!is_left_after(MAX_LIVES));
    }
}
