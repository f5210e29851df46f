//! What the tests ask of the tables: whether anything is in them that should have gone.

use std::collections::BTreeSet;

use super::{Listed, TASKS};
use crate::scheduler::{Ownership, Request, Tasks, can_run};
use crate::{limits, operation};

/// What is wrong with the tables while all tasks wait.
pub fn faults_when_parked() -> Vec<String> {
    let mut faults = Vec::new();
    if can_run() {
        faults.push("a task can run, and does not".to_owned());
    }
    TASKS.with_borrow(|tasks| {
        faults.extend(faults_of_tasks(tasks));
        faults.extend(faults_of_waits(tasks));
    });
    faults
}

/// What is left in the tables when all tasks have ended.
pub fn left_at_the_end() -> Vec<String> {
    TASKS.with_borrow(|tasks| {
        let waits = &tasks.waits;
        let operations = operation::waiting_tasks().len();
        let counts = [
            ("tasks", tasks.alive.len()),
            ("waits", waits.by_ticket.len()),
            ("tasks that are waited for", waits.for_end.len()),
            ("lines", waits.lines.len()),
            ("edges", waits.edges.len()),
            ("operations", operations),
        ];
        let left = counts.into_iter().filter(|&(_, n)| n > 0);
        left.map(|(what, n)| format!("{n} {what} are left when all tasks have ended")).collect()
    })
}

fn faults_of_tasks(tasks: &Tasks) -> Vec<String> {
    let mut waiting: BTreeSet<u32> = tasks.waits.by_ticket.values().map(|wait| wait.task).collect();
    waiting.extend(operation::waiting_tasks().into_iter().flatten());
    // These wait for the answer to go out; one that was cancelled meanwhile has ended.
    let detached = tasks.requests.values().flat_map(|request| &request.detached);
    waiting.extend(detached.filter(|id| tasks.alive.contains_key(id)));
    let mut faults = Vec::new();
    for (number, request) in &tasks.requests {
        faults.extend(faults_of_request(tasks, *number, request));
    }
    for (id, task) in &tasks.alive {
        let request = tasks.requests.get(&task.request);
        let waits_for_others = request.is_some_and(|request| request.first == *id && request.idle.is_some());
        if !waiting.contains(id) && !waits_for_others {
            faults.push(format!("the task {id} waits for nothing"));
        }
        if task.future.is_none() {
            faults.push(format!("the task {id} runs"));
        }
    }
    faults.extend(
        waiting
            .iter()
            .filter(|id| !tasks.alive.contains_key(id))
            .map(|id| format!("something waits for the task {id}, which has ended")),
    );
    faults
}

fn faults_of_request(tasks: &Tasks, number: u32, request: &Request) -> Vec<String> {
    let mut faults = Vec::new();
    let (n, counted) = (tasks.of_request(number).count(), request.n_alive());
    if n != counted {
        faults.push(format!("{n} tasks of a request are alive, and {counted} are counted"));
    }
    if n > limits::tasks() + 1 {
        faults.push(format!("{n} tasks are alive"));
    }
    // As long as a cancelled one is left, its end ends the others.
    let mut daemons = tasks.of_request(number).filter(|(_, task)| task.ownership == Ownership::Daemon);
    let go_on = request.any_daemons() && !daemons.any(|(_, task)| task.cancelled);
    let is_answering = request.idle.is_some() && !request.any_awaited();
    if go_on && (is_answering || request.only_daemons()) {
        faults.push("a task that no request waits for goes on after all others".to_owned());
    }
    faults
}

fn faults_of_waits(tasks: &Tasks) -> Vec<String> {
    let waits = &tasks.waits;
    let mut faults = Vec::new();
    let listed: BTreeSet<u64> = waits.lines.values().chain(waits.for_end.values()).flatten().copied().collect();
    for (ticket, wait) in &waits.by_ticket {
        if wait.end.is_some() {
            faults.push(format!("the task {} was woken, and has not run", wait.task));
        } else if !matches!(wait.listed, Listed::Nowhere) && !listed.contains(ticket) {
            faults.push(format!("the task {} waits where nobody looks", wait.task));
        }
    }
    if listed.iter().any(|ticket| !waits.by_ticket.contains_key(ticket)) {
        faults.push("a wait that is over is listed".to_owned());
    }
    for (task, target) in &waits.edges {
        if !tasks.alive.contains_key(task) || !tasks.alive.contains_key(target) {
            faults.push(format!("the task {task} is said to wait for {target}; one of them has ended"));
        }
    }
    faults
}
