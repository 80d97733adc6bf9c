// Package story assembles the whole system on the simulator inside one process: a cluster of key nodes on machines of
// their own, a function host, apps. 'claviger demo' walks through it step by step and fails if a step does not hold;
// 'claviger dev' starts it and waits.
//
// Everything talks over loopback TCP through the same packages as the daemons. Only the machines, the root of trust and
// the operators' key are simulated.
package story
