// Package bolt is the archive of a raftstore.Store in a raft-boltdb file. bbolt
// maps its file and follows pointers inside it, which a hostile disk must not
// choose, so this archive runs in the simulator, or outside the enclave; inside
// one use archive/file. Records arrive sealed and chained: what the database
// sees are blobs under sequence numbers.
package bolt
