// Package node assembles one node of a cluster: an enclave's evidence, attested
// channels, the replicated store, the key derivation service, and the admission
// of other nodes. Daemons, the demo and tests use the same code; what they hand
// in decides whether the enclave is real or simulated.
//
//	n, err := node.New(node.Config{…})
//	go n.Run(ctx)      // blocks; the end of ctx is a graceful stop
//	<-n.Ready()        // this boot is a voter
//
// Each boot makes a fresh key in memory; its hash is the server id of the boot.
// A node either founds a cluster (Config.Genesis) or joins the one whose id it
// pins (Config.ClusterID). Root secrets leave a node only over a channel
// attested in both directions, to evidence that satisfies the node policy in
// the cluster's manifest, after the admission has been committed.
//
// What decides trust within a cluster is in its manifest and in measured code.
// Which cluster this is, Config.ClusterID says: a binary that does not bring it
// in measured bytes takes it from the host, and so serves the cluster that the
// host chooses. It then holds that cluster's roots and no other's, and clients
// that pin theirs refuse it. The rest of the host's configuration sets
// addresses, paths, the slot's name and the log level; the worst it can do with
// them is to keep the node from working. See DESIGN.md.
package node
