// Package functions runs confidential functions inside an enclave and seals the
// calls to them, end to end, through a host that is the adversary.
//
// # The parts
//
// A project belongs to the holder of an Ed25519 key: its id is the hash of that
// key and the project's name ([ProjectIDOf]). A deployment is a bundle of code
// under a sequence number that the owner signed ([SignDeployment]). A [Host] is
// the enclave's side: it takes deployments, keeps code and data of each project in
// one encrypted store, and answers calls. A [Client] is everybody else's: it holds
// the runtime's public key, the project id and the code hash, and talks to nothing
// else that it would have to believe.
//
// # Keys
//
// All keys come from a [KeySource], which asks the key service for keys bound to
// the runtime's own measurement: "functions/invoke" (x25519) opens requests,
// "functions/store/<project>" (aes-256) seals the project's store,
// "functions/project/<project>" (raw/32) is what the project's code gets from
// crypto.getProjectKey(). Another machine with the same runtime gets the same
// keys, so a project moves by moving its files. A source must give the same key
// for a name for ever: function hosts ask for root generation 1, which a recovery
// of the cluster does not change, and so do callers.
//
// # A call
//
// The request is sealed to the runtime's key under the runtime's constraint, the
// project, the function and the code hash that the caller expects. The host of the
// machine sees those, sizes in buckets and resource use, rounded. Once a request
// has opened, every answer, refusals included, is sealed to the caller's reply key:
// what a [CallError] says comes from the enclave, what a [Problem] says is only the
// host's word. A pinned code hash that is not the deployed one is refused before
// anything runs ([ErrCodeHashMismatch]).
//
// An invocation happens at most once. Requests name a session of the running Host
// and an invocation id; each session remembers its ids, and a Host forgets a
// session only together with all requests that name it. So a replay is refused
// ([ErrDuplicate], [ErrStaleSession]) by the same process, after a restart and on
// another machine, without a write per call.
//
// One call is one transaction: the call's kv operations are serializable with all
// others of the project, from its first kv operation on, and become durable together
// when the function has returned successfully, before the reply is sealed. A call
// that fails, in whatever way, leaves nothing. Functions that do not use kv run
// side by side; functions that do take turns within their project.
//
// # What projects may take
//
// Listed owners deploy ([Config.Owners]); nobody does by default. The list comes
// from the machine's host and is for its own protection: what keeps projects apart
// is in the enclave. All that stays in memory between calls comes out of one budget
// of bytes ([Config.Budget]); to make room, idle instances end and idle projects
// close, the longest unused first, never one with calls in flight. Files have
// quotas, one project gets half of the slots and of the instances, and a request's body has
// arrived before it takes one. Metrics ([Config.Registerer]) and the log tell the
// host counts, rounded durations and what it could see anyway.
//
// # What it does not do
//
// Anyone who knows a project's id and code hash may call it: functions decide for
// themselves whom they serve. Without freshness registers ([Config.Registers]) the
// host can put back an older copy of a project's files, or delete them and replay an old
// deployment: an old state and an old deployment are then in force again. Pinned
// code hashes still hold, so callers notice the old code; they do not notice old
// data. Until the registers of the key service exist, Config.NoFreshnessUnsafe says
// so by name. Function names, call times and durations are visible to the host.
package functions
