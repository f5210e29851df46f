//! Doing it: one file per capability. Each effect takes the broker's permit by value.

pub mod connect;
pub mod detach;
pub mod fs;
pub mod http;
pub mod kv;
pub mod module;
pub mod net;
mod per_tenant;
pub mod secret;
pub mod time;
pub mod workers;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use neoc_abi::{Outcome, Reply, narrowing};

use crate::{
    broker::{Broker, Permit},
    policy::{Host, Tenant},
};

/// What the effects work with: connection pools, open directories, the store, secrets.
pub struct Capabilities {
    http: http::Client,
    net: net::Client,
    fs: fs::Directories,
    kv: Option<Arc<kv::Store>>,
}

/// Why a capability cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A granted directory cannot be opened.
    #[error("{key}: cannot open the directory {}", path.display())]
    Directory {
        /// The policy key.
        key: String,
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Secrets that cannot be used, all of them.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Secrets(Vec<secret::Problem>),
    /// The key-value store cannot be opened.
    #[error("cannot open the key-value store {}", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// What the store said.
        #[source]
        source: kv::StoreError,
    },
}

impl Capabilities {
    /// Opens what the tenants' grants need: their directories, and the store if anyone may use it. Reads their secrets.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(host: &Host, tenants: &[Arc<Tenant>], broker: Arc<Broker>) -> Result<Self, OpenError> {
        let any_kv = tenants.iter().any(|tenant| tenant.may_use_kv());
        let secrets = secret::Secrets::read(tenants).map_err(OpenError::Secrets)?;
        let fs = fs::Directories::open(&host.data_dir, tenants, None)?;
        let kv = any_kv.then(|| kv::Store::open(&host.data_dir).map(Arc::new)).transpose()?;
        Ok(Self::with(broker, &host.dns, secrets, fs, kv))
    }

    /// What the tenants of another policy of the same host need. The store stays open; connections are made
    /// anew, because those that are there were judged by the policy before. Secrets are read again.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn successor(&self, host: &Host, tenants: &[Arc<Tenant>], broker: Arc<Broker>) -> Result<Self, OpenError> {
        let any_kv = tenants.iter().any(|tenant| tenant.may_use_kv());
        let kv = match &self.kv {
            // Also when nobody may use it any more: running requests do, and only one may have it open.
            Some(store) => Some(Arc::clone(store)),
            None => any_kv.then(|| kv::Store::open(&host.data_dir).map(Arc::new)).transpose()?,
        };
        let secrets = secret::Secrets::read(tenants).map_err(OpenError::Secrets)?;
        let fs = fs::Directories::open(&host.data_dir, tenants, Some(&self.fs))?;
        Ok(Self::with(broker, &host.dns, secrets, fs, kv))
    }

    /// For a script that runs without a policy: there is nothing to open.
    pub fn none(broker: Arc<Broker>) -> Self {
        Self::with(broker, &[], secret::Secrets::default(), fs::Directories::none(), None)
    }

    fn with(
        broker: Arc<Broker>,
        dns: &[SocketAddr],
        secrets: secret::Secrets,
        fs: fs::Directories,
        kv: Option<Arc<kv::Store>>,
    ) -> Self {
        let connector = Arc::new(connect::Connector::new(dns));
        let http = http::Client::new(Arc::clone(&broker), Arc::clone(&connector), secrets);
        Self { http, net: net::Client::new(broker, connector), fs, kv }
    }
}

/// Does what takes no time, with what the VM has open. Gives back the permit of anything else.
///
/// # Errors
/// The permit, for [`perform`].
pub fn perform_at_once(sockets: &net::Sockets, permit: Permit) -> Result<Outcome, Permit> {
    match permit {
        Permit::Detach(permit) => Ok(Ok(Reply::Detach(detach::perform(permit)))),
        Permit::Net(permit) => sockets.perform_at_once(permit).map_err(Permit::Net),
        Permit::Narrow => Ok(Ok(Reply::Narrow(narrowing::Reply::Checked))),
        other => Err(other),
    }
}

/// Does what the permit allows; `modules` is the folder of the tenant's script, `sockets` is what the VM has open,
/// and a VM for a worker comes from `launch`. Cancelled by dropping the future.
///
/// # Errors
/// What the script gets: of kind `io`, `timeout`, `limit`, or `denied` for an address or a redirect.
pub async fn perform(
    capabilities: &Capabilities,
    modules: &Arc<module::Folder>,
    sockets: &net::Sockets,
    launch: Option<workers::Launch>,
    permit: Permit,
) -> Outcome {
    match permit {
        // What is boxed has by far the longest ways: the others need not have room for them.
        Permit::Http(permit) => Box::pin(capabilities.http.perform(permit)).await.map(Reply::Http),
        Permit::Fs(permit) => capabilities.fs.perform(permit).await.map(Reply::Fs),
        Permit::Kv(permit) => kv::perform(capabilities.kv.as_deref(), permit).await.map(Reply::Kv),
        Permit::Time(permit) => Ok(Reply::Time(time::perform(permit).await)),
        Permit::Detach(permit) => Ok(Reply::Detach(detach::perform(permit))),
        Permit::Module(permit) => modules.find(permit).await.map(Reply::Module),
        Permit::Workers(permit) => workers::perform(launch, permit).await.map(Reply::Workers),
        Permit::Net(permit) => Box::pin(capabilities.net.perform(sockets, permit)).await.map(Reply::Net),
        Permit::Narrow => Ok(Reply::Narrow(narrowing::Reply::Checked)),
    }
}
