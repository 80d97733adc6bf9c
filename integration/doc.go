// Package integration holds the tests that look at the project as a whole: the import rules of the house, the
// simulated cluster, the faults it must survive, and the reference vectors run through the command line.
//
// Process chaos (TestProcessChaos) starts real clavigerd-sim processes, each in a network namespace on a switch of the test's
// own where the machine allows that, and breaks them: kill -9, SIGSTOP, interrupted admissions, lost, late, doubled and one-way
// packets, partitions, directories rolled back, wiped and swapped, clones, impostors, clocks set by days, full disks. In tolerated
// rounds that happens to a minority of slots; in wild ones everybody may be frozen, cut off and told wrong times, but a
// majority keeps its roots. Clients ask random nodes for keys and for the size of the log meanwhile, intruders for what is
// not theirs. After each round everything is mended, every slot must have a ready boot and keys must be released again;
// porcupine must find the clients' history to be that of one counter; receipts, roots, keys, terms, configurations and
// applied indexes must agree. That the check can fail is shown by -chaos.blind and by TestCounterHistories.
//
//	go test ./integration -run TestProcessChaos -v -timeout 40m -args -chaos.minutes=30 -chaos.seed=1 -chaos.nodes=5
//
// It exports nothing. The import rules are a table, one line per package of the module: a package that is not in
// the table fails the test, so that a new package comes with a decision about what it may depend on.
package integration
