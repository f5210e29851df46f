//! One request, from its route to its answer.
//!
//! A client learns nothing of policy, script or host: an answer of ours is one line of text and the
//! request's name, under which the operator finds the rest in the log.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header, request::Parts};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use neoc_abi::event::{self, Finish, Written};
use serde_bytes::ByteBuf;

use super::{
    generation::{Generation, LoadError, Reloaded, Served},
    inbound::{self, BodyError},
};
use crate::{
    limits::{Exceeded, Owner},
    policy::{Limits, Policy, shown_bytes},
    request_id,
    runtime::{CpuBudget, Effects, Failure, Job, Runtime},
    script_log::ScriptLog,
    tenant::Tenant,
};

/// The name of a request, in our answers and our log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a text is.
const PLAIN_TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Which policy is in force.
#[derive(Debug, Clone)]
pub struct Status {
    /// See [`Policy::version`].
    pub version: String,
    /// Counted from 1, at the start of the host.
    pub number: u64,
}

type Answer = Response<Full<Bytes>>;

/// All tenants, ready to serve, under a policy that can be replaced.
pub struct Service {
    generation: ArcSwap<Generation>,
    /// Held by whoever replaces the generation.
    reloading: tokio::sync::Mutex<()>,
    runtime: Arc<Runtime>,
}

impl Service {
    /// Opens what the grants need and loads every tenant's script. `listener`: where the service will be reached.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub async fn load(policy: Policy, runtime: Arc<Runtime>, listener: SocketAddr) -> Result<Self, LoadError> {
        let generation = Generation::first(policy, &runtime, listener).await?;
        warn_of_reported(&generation);
        let generation = ArcSwap::from_pointee(generation);
        Ok(Self { generation, reloading: tokio::sync::Mutex::default(), runtime })
    }

    /// Puts another policy in force, whole or not at all: everything is opened and loaded beside what is there,
    /// then replaced in one step. Requests that run end under the policy they began with.
    ///
    /// # Errors
    /// See [`LoadError`]; the policy that was in force stays so.
    pub async fn reload(&self, policy: Policy) -> Result<Reloaded, LoadError> {
        let _alone = self.reloading.lock().await;
        let (generation, reloaded) = self.generation.load_full().successor(policy, &self.runtime).await?;
        warn_of_reported(&generation);
        self.generation.store(Arc::new(generation));
        Ok(reloaded)
    }

    /// The policy that is in force, as it stands in an operator's log.
    pub fn status(&self) -> Status {
        let generation = self.generation.load();
        Status { version: generation.policy.version(), number: generation.number }
    }

    /// Waits until no script runs, detached tasks included. No request may come any more: VMs that wait for one end.
    pub async fn idle(&self) {
        self.generation
            .load()
            .tenants
            .iter()
            .filter_map(|served| served.tenant.resident.as_ref())
            .for_each(|vm| vm.retire());
        self.runtime.idle().await;
    }

    /// Logs how many operations were permitted, and how many refused for which reason.
    pub fn log_decisions(&self) {
        let generation = self.generation.load();
        let audit = generation.broker.decisions();
        for ((capability, outcome, reason), count) in audit.counters() {
            tracing::info!(target: "neoc::audit", capability, outcome, reason, count, "decisions since the start");
        }
        if audit.n_left_out() > 0 {
            tracing::warn!(target: "neoc::audit", count = audit.n_left_out(), "refusals left out of the log, over their tenants' parts of it");
        }
        if audit.n_lost() > 0 {
            tracing::warn!(target: "neoc::audit", count = audit.n_lost(), "records that are not in the audit file");
        }
        let count: u64 = generation.tenants.iter().map(|served| served.tenant.log_quota.n_stalls()).sum();
        if count > 0 {
            tracing::info!(target: "neoc::request", count, "stalls since the start");
        }
    }

    /// Opens the audit file again, as after it was moved.
    pub fn reopen_audit(&self) {
        self.generation.load().broker.decisions().reopen();
    }

    /// Waits until all decisions are in the audit file. Later ones are lost.
    pub fn close_audit(&self) {
        self.generation.load().broker.decisions().close();
    }

    /// Answers one request. Dropping the future, as when the client leaves, cancels the script.
    ///
    /// A request that is there whole is read at once and not when the future is polled: between the two, hyper looks for
    /// the end of the connection, and for that takes the same buffer again if nobody has any of the request in it.
    pub fn respond(self: &Arc<Self>, request: Request<Incoming>) -> impl Future<Output = Answer> + Send + use<> {
        let (service, id) = (Arc::clone(self), request_id::fresh());
        // One look for the whole request: what is loaded meanwhile is for those that come after it.
        let generation = self.generation.load_full();
        let admitted = admit(&generation, request, &id);
        async move {
            let received = match admitted {
                Ok((served, Content::ToCome(request))) => {
                    read(&generation, &served.tenant, request, &id).await.map(|event| (served, event))
                }
                Ok((served, Content::Here(event))) => Ok((served, event)),
                Err(answer) => Err(answer),
            };
            let mut answer = match received {
                Ok((served, event)) => service.run(&generation, &served, event, &id).await,
                Err(answer) => answer,
            };
            if let Ok(id) = HeaderValue::from_str(&id) {
                answer.headers_mut().insert(REQUEST_ID, id);
            }
            answer
        }
    }

    async fn run(&self, generation: &Generation, served: &Served, event: Written, id: &Arc<str>) -> Answer {
        let Served { tenant, principal, line } = served;
        let limits = &tenant.policy.limits;
        // To read the clock costs as much as to allocate: only for whoever reads of it.
        let began = tracing::enabled!(target: "neoc::request", tracing::Level::DEBUG).then(Instant::now);
        let job = Job {
            share: tenant.share.clone(),
            image: Arc::clone(&tenant.image),
            resident: tenant.resident.clone(),
            event,
            memory_bytes: usize::try_from(limits.memory_bytes).unwrap_or(usize::MAX),
            cpu: CpuBudget::new(limits.cpu),
            wall: limits.wall,
            log: ScriptLog::tenant(Arc::clone(id), Arc::clone(&tenant.log_quota)),
            effects: Effects::new(line, principal.caller(Arc::clone(id))),
            detach: tenant.policy.usable_detach(),
        };
        let count_limit = |limit| generation.broker.decisions().count_limit("request", limit);
        match self.runtime.run(job).await {
            Ok(ended) => {
                if matches!(&ended.finish, Finish::Response(response) if is_too_large(&response.body, limits)) {
                    count_limit("response_body");
                }
                if let Some(began) = began {
                    let (wall_ms, cpu_us) = (began.elapsed().as_millis(), ended.cpu.as_micros());
                    let n_stalls = ended.n_stalls;
                    tracing::debug!(target: "neoc::request", tenant = %tenant.name, request = %id, wall_ms, cpu_us, n_stalls, "done");
                }
                finished(ended.finish, tenant, id)
            }
            Err(failure) => {
                if let Some((limit, _)) = failure.limit() {
                    count_limit(limit);
                }
                failed(&failure, tenant, id)
            }
        }
    }
}

/// A request for a tenant's script.
enum Content {
    /// It is there.
    Here(Written),
    /// Its body is still to be read.
    ToCome(Box<(Parts, Incoming)>),
}

/// Takes a request in, and says for whose script it is.
///
/// # Errors
/// The answer to one that is for none, or over the tenant's rate.
fn admit(generation: &Generation, request: Request<Incoming>, id: &str) -> Result<(Arc<Served>, Content), Answer> {
    let (parts, body) = request.into_parts();
    let served = route(generation, &parts).ok_or_else(|| plain(StatusCode::NOT_FOUND, "no such page", id))?;
    let tenant = &served.tenant;
    if let Err(over) = tenant.requests.try_take() {
        generation.broker.decisions().count_limit("request", "requests");
        tracing::debug!(target: "neoc::request", tenant = %tenant.name, request = %id,
            limit = "requests", value = %tenant.policy.limits.requests, "refused: over the tenant's limit");
        let mut answer = plain(StatusCode::TOO_MANY_REQUESTS, "too many requests", id);
        // Whole seconds, rounded up: an early retry would be refused again.
        let seconds = over.retry_after.as_millis().div_ceil(1000).max(1);
        retry_after(&mut answer, u64::try_from(seconds).unwrap_or(u64::MAX));
        return Err(answer);
    }
    let content = if body.is_end_stream() {
        Content::Here(written(tenant, &parts, &[], id)?)
    } else {
        Content::ToCome(Box::new((parts, body)))
    };
    Ok((Arc::clone(served), content))
}

/// Reads the rest of a request.
///
/// # Errors
/// The answer to one that does not come whole, or is over the tenant's limit.
async fn read(
    generation: &Generation,
    tenant: &Tenant,
    request: Box<(Parts, Incoming)>,
    id: &str,
) -> Result<Written, Answer> {
    let (parts, body) = *request;
    let limits = &tenant.policy.limits;
    let body = inbound::read_body(body, limits.request_body_bytes).await.map_err(|error| match error {
        BodyError::TooLarge => {
            generation.broker.decisions().count_limit("request", "request_body");
            tracing::debug!(target: "neoc::request", tenant = %tenant.name, request = %id,
                limit = "request_body", value = shown_bytes(limits.request_body_bytes), "refused: over the tenant's limit");
            plain(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large", id)
        }
        BodyError::TooSlow => plain(StatusCode::REQUEST_TIMEOUT, "the body came too slowly", id),
        BodyError::Broken => plain(StatusCode::BAD_REQUEST, "the body is broken", id),
    })?;
    written(tenant, &parts, &body, id)
}

/// A request as its script gets it.
fn written(tenant: &Tenant, parts: &Parts, body: &[u8], id: &str) -> Result<Written, Answer> {
    let unwritten = |_| failed(&Failure::Internal("the request has no form in a message".into()), tenant, id);
    inbound::event(parts, body).map_err(unwritten)
}

/// The tenant that a request is for.
fn route<'a>(generation: &'a Generation, parts: &Parts) -> Option<&'a Arc<Served>> {
    // An absolute-form target names its host itself; it must not disagree with the header.
    let named = parts.uri.host();
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = match (named, hosts.next(), hosts.next()) {
        (_, _, Some(_)) => return None,
        (Some(host), _, None) => Some(host),
        (None, host, None) => host.and_then(|host| host.to_str().ok()),
    };
    generation.tenants.get(generation.policy.route_index(host, parts.uri.path())?)
}

/// Says, at the start and at each reload, who is not held to the policy.
fn warn_of_reported(generation: &Generation) {
    let tenants = generation.reported();
    if !tenants.is_empty() {
        let (n_tenants, tenants) = (tenants.len(), tenants.join(" "));
        tracing::warn!(target: "neoc::audit", n_tenants, tenants, "REPORT MODE: what the policy refuses these tenants passes, and is recorded");
    }
}

/// The answer to a script that came to its end.
fn finished(finish: Finish, tenant: &Tenant, id: &str) -> Answer {
    let problem = match finish {
        Finish::Response(response) if is_too_large(&response.body, &tenant.policy.limits) => {
            let most_bytes = shown_bytes(tenant.policy.limits.response_body_bytes);
            Exceeded::new(Owner::Request, "response_body", most_bytes).to_string()
        }
        Finish::Response(response) => match convert(response) {
            Ok(answer) => return answer,
            Err(problem) => problem,
        },
        Finish::Failed(error) => {
            tracing::error!(target: "neoc::request", tenant = %tenant.name, request = id,
                message = error.message, traceback = error.traceback, "the script failed");
            return plain(StatusCode::INTERNAL_SERVER_ERROR, "the script failed", id);
        }
        Finish::Done | Finish::Worked(_) | Finish::Surveyed(_) => "it gave no response".to_owned(),
    };
    tracing::error!(target: "neoc::request", tenant = %tenant.name, request = id, problem, "the script's response is not valid");
    plain(StatusCode::INTERNAL_SERVER_ERROR, "the script failed", id)
}

fn is_too_large(body: &[u8], limits: &Limits) -> bool {
    u64::try_from(body.len()).map_or(true, |bytes| bytes > limits.response_body_bytes)
}

/// The answer to a script whose VM was killed.
fn failed(failure: &Failure, tenant: &Tenant, id: &str) -> Answer {
    let (limit, value) = failure.limit().unzip();
    tracing::error!(target: "neoc::request", tenant = %tenant.name, request = id, reason = failure.as_str(),
        limit, value, "{failure}");
    match failure {
        Failure::Wall(_) => plain(StatusCode::GATEWAY_TIMEOUT, "the script took too long", id),
        Failure::Capacity => try_again("the host is full", id),
        Failure::Crowded(_) => try_again("too many requests at once", id),
        Failure::Lost => try_again("the script was started again", id),
        Failure::Cpu(_) | Failure::Stalled | Failure::Trap(_) | Failure::Internal(_) => {
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the script failed", id)
        }
    }
}

/// Checks what the script answered. Framing is the host's: headers that decide it are refused.
fn convert(response: event::Response) -> Result<Answer, String> {
    let event::Response { status, is_text, headers, body } = response;
    let status = StatusCode::from_u16(status).ok().filter(|status| !status.is_informational());
    let status = status.ok_or("its status is not one of 200 to 599")?;
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    *answer.headers_mut() = convert_headers(headers)?;
    if is_text {
        answer.headers_mut().insert(header::CONTENT_TYPE, PLAIN_TEXT);
    }
    Ok(answer)
}

fn convert_headers(headers: Vec<(String, ByteBuf)>) -> Result<HeaderMap, String> {
    const FRAMING: [HeaderName; 6] = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        REQUEST_ID,
    ];
    // The request's name is to come, and perhaps what the content is.
    let mut converted = HeaderMap::with_capacity(headers.len() + 2);
    for (name, value) in headers {
        let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("not a header name: {name:?}"))?;
        if FRAMING.contains(&parsed) {
            return Err(format!("the header {parsed} is set by the host alone"));
        }
        let value = HeaderValue::from_maybe_shared(Bytes::from(value.into_vec()))
            .map_err(|_| format!("the value of the header {parsed} has a control character"))?;
        converted.append(parsed, value);
    }
    Ok(converted)
}

fn plain(status: StatusCode, text: &str, id: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(format!("{text} (request {id})\n"))));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, PLAIN_TEXT);
    answer
}

fn try_again(text: &str, id: &str) -> Answer {
    let mut answer = plain(StatusCode::SERVICE_UNAVAILABLE, text, id);
    retry_after(&mut answer, 1);
    answer
}

fn retry_after(answer: &mut Answer, seconds: u64) {
    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, name: &str, value: &str) -> event::Response {
        event::Response { status, is_text: false, headers: vec![(name.into(), ByteBuf::from(value))], body: vec![] }
    }

    #[test]
    fn a_script_cannot_touch_the_framing_of_its_answer() {
        for name in ["Content-Length", "transfer-encoding", "Connection", "x-request-id"] {
            assert!(convert(response(200, name, "1")).is_err(), "{name}");
        }
    }

    #[test]
    fn a_script_cannot_split_its_answer() {
        assert!(convert(response(200, "x", "a\r\nb: c")).is_err());
        assert!(convert(response(200, "x y", "a")).is_err());
    }

    #[test]
    fn a_text_is_plain_text() {
        let answer = convert(event::Response::text("a".into())).expect("an answer");
        assert_eq!((answer.status(), &answer.headers()["content-type"]), (StatusCode::OK, &PLAIN_TEXT));
    }

    #[test]
    fn only_final_statuses_are_answers() {
        for (status, valid) in [(99, false), (101, false), (200, true), (599, true), (1000, false)] {
            assert_eq!(convert(response(status, "x", "a")).is_ok(), valid, "{status}");
        }
    }
}
