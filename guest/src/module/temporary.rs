//! What `require.luau` needs of the scheduler: the task that runs, and lists of tasks that wait.

use std::cell::RefCell;
use std::collections::BTreeMap;

use futures::channel::oneshot;
use mlua::{Lua, Table, Value};

use crate::scheduler;
use crate::stdlib::{self, Body};

#[derive(Default)]
struct Lists {
    /// The number of the last list.
    last: u32,
    /// The bells of those who wait.
    bells: BTreeMap<u32, Vec<oneshot::Sender<()>>>,
}

thread_local! {
    static LISTS: RefCell<Lists> = RefCell::default();
}

fn number(value: &Value) -> u32 {
    value.as_u32().unwrap_or(0)
}

/// Adds them to the prelude.
///
/// # Errors
/// When there is no memory for it.
pub fn install(lua: &Lua, prelude: &Table) -> mlua::Result<()> {
    let functions: [(&str, Body); 4] = [
        ("current_task", Body::Local(|_, _| Ok(Value::Number(scheduler::current().into())))),
        (
            "wait_list",
            Body::Local(|_, _| {
                let id = LISTS.with_borrow_mut(|lists| {
                    lists.last += 1;
                    lists.last
                });
                Ok(Value::Number(id.into()))
            }),
        ),
        (
            "wait_on",
            Body::Yields(|_, arguments| {
                Box::pin(async move {
                    let [_, list, owner] = &arguments.values;
                    let (bell, waiting) = oneshot::channel();
                    LISTS.with_borrow_mut(|lists| lists.bells.entry(number(list)).or_default().push(bell));
                    scheduler::wait_for("require", number(owner), waiting).await?;
                    Ok(Value::Nil)
                })
            }),
        ),
        (
            "wake_all",
            Body::Local(|_, arguments| {
                let bells = LISTS.with_borrow_mut(|lists| lists.bells.remove(&number(&arguments.values[0])));
                for bell in bells.into_iter().flatten() {
                    let _ = bell.send(());
                }
                Ok(Value::Nil)
            }),
        ),
    ];
    for (name, body) in functions {
        prelude.raw_set(name, stdlib::wrap(lua, prelude, name.to_owned(), &body)?)?;
    }
    Ok(())
}
