//! A small HTTP server on one thread.

use std::{convert::Infallible, io, rc::Rc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, request::Parts};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::spawn_local,
};

use crate::vm::Vm;

/// Who answers a request.
pub enum Answerer {
    /// Rust alone.
    Bare,
    /// The first of these VMs. The others only take memory, as tenants that nobody calls.
    Shared(Vec<Vm>),
    /// A VM of its own, from this bytecode.
    Fresh(Vec<u8>),
    /// Rust, after this delay.
    Upstream(Duration),
}

/// Serves until the process is ended.
pub async fn serve(listener: TcpListener, answerer: Rc<Answerer>) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        spawn_local(serve_connection(stream, Rc::clone(&answerer)));
    }
}

async fn serve_connection(stream: TcpStream, answerer: Rc<Answerer>) {
    let service = service_fn(|request: Request<Incoming>| {
        let answerer = Rc::clone(&answerer);
        async move { Ok::<_, Infallible>(respond(&answerer, &request.into_parts().0).await) }
    });
    // A client that went away is its own affair.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn respond(answerer: &Answerer, request: &Parts) -> Response<Full<Bytes>> {
    let (status, body) = match answerer.answer(request).await {
        Ok(body) => (StatusCode::OK, body),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}

// === impl Answerer ===

impl Answerer {
    async fn answer(&self, request: &Parts) -> mlua::Result<String> {
        match self {
            Self::Bare => Ok(format!("hello {}", request.uri.path())),
            Self::Shared(vms) => match vms.first() {
                Some(vm) => vm.answer(request).await,
                None => Err(mlua::Error::runtime("at least one VM is needed")),
            },
            Self::Fresh(bytecode) => Vm::load(bytecode)?.answer(request).await,
            Self::Upstream(delay) => {
                tokio::time::sleep(*delay).await;
                Ok(format!("hello {}", request.uri.path()))
            }
        }
    }
}
