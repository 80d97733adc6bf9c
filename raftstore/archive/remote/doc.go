// Package remote keeps the archive of a raftstore.Store with a server on the
// host: the client, [Archive], implements raftstore.Archive inside a TEE, and
// [Server], outside, writes what it is given into any archive it was made with.
// cmd/claviger-archive is that server with raft-boltdb, a database that must not
// be opened inside a TEE, because it maps its file and follows pointers in it.
//
// # The server is the host
//
// Nothing authenticates it and nothing needs to: records are sealed and chained
// before they get here, and opened by raftstore.Opener when a recovery reads
// them back. A server that lies can do what a disk that lies can do: lose
// records after it has acknowledged them, keep old ones, or refuse. It cannot
// read, change, reorder or invent one. The client treats every byte from it as
// hostile: a frame's length is bounded by its type before memory is taken, every
// exchange has a deadline, and any error is final and stops the store (and not
// the process, which keeps the roots).
//
// # Protocol, version 1
//
// A frame is a 4-byte big-endian payload length, a type byte and the payload. A
// connection begins with create, records or list, and serves one archive. After
// create the client appends batches, which are not answered, and asks for sync,
// cut, drop and close, each of which names how many records the client has sent
// and is answered by the same number or by a fault. After records or list the
// server answers with batches or names and an end that counts them.
package remote
