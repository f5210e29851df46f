# workerd: an isolate for each service. Only the first is asked; the others are tenants that nobody calls.

using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    @services@
    (name = "internet", network = (allow = ["local", "private", "public"])),
  ],
  sockets = [(name = "http", address = "127.0.0.1:@port@", http = (), service = "tenant0")],
);

const worker :Workerd.Worker = (
  modules = [(name = "worker.js", esModule = embed "worker.js")],
  compatibilityDate = "2025-01-01",
);
