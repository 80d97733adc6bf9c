package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/kds/api"
)

// epochMemory is what an operator remembers beside a key: per cluster the highest epoch ever signed, by which statement, and
// the highest version of the node policy ever seen. An operator who forgets signs an epoch twice, and then two enclaves open
// it: see raftstore/model, "operator signs an epoch twice".
type epochMemory struct {
	Clusters []rememberedEpoch `json:"clusters"`
}

type rememberedEpoch struct {
	ClusterID  api.ID `json:"cluster_id"`
	Epoch      uint64 `json:"epoch"`
	Statement  api.ID `json:"statement_sha256"`
	NodePolicy uint64 `json:"node_policy_version"`
}

const maxMemoryFile = 1 << 20

// memoryFile lies beside the key.
func memoryFile(key string) string { return key + ".epochs" }

func readMemory(s *cli.Streams, key string) (*epochMemory, error) {
	var m epochMemory
	raw, err := s.ReadFile(memoryFile(key), maxMemoryFile)
	if _, usage := errors.AsType[*cli.UsageError](err); usage || errors.Is(err, fs.ErrNotExist) {
		return &m, nil // nothing has been signed with this key here
	}
	if err != nil {
		return nil, err
	}
	if err := api.DecodeJSON(raw, maxMemoryFile, &m); err != nil {
		return nil, fmt.Errorf("%s does not say which epochs this key has signed; restore it before you sign: %w", memoryFile(key), err)
	}
	return &m, nil
}

// allow refuses what this key must not sign: an epoch that is not above the highest signed, unless it is the very same
// statement, and a node policy below one that was seen.
func (m *epochMemory) allow(r rememberedEpoch) error {
	for _, old := range m.Clusters {
		switch {
		case old.ClusterID != r.ClusterID:
		case r.Epoch < old.Epoch, r.Epoch == old.Epoch && r.Statement != old.Statement:
			return fmt.Errorf("this key has signed epoch %d of this cluster before, in another statement: an epoch is signed once; use --epoch %d or higher, if that one was never opened",
				old.Epoch, old.Epoch+1)
		case r.NodePolicy < old.NodePolicy:
			return fmt.Errorf("this key has seen version %d of the node policy, and that archive has version %d: it is an old copy", old.NodePolicy, r.NodePolicy)
		}
	}
	return nil
}

// remember writes the memory before the signature leaves this process.
func (m *epochMemory) remember(key string, r rememberedEpoch) error {
	m.Clusters = slices.DeleteFunc(m.Clusters, func(old rememberedEpoch) bool { return old.ClusterID == r.ClusterID })
	m.Clusters = append(m.Clusters, r)
	raw, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(memoryFile(key), append(raw, '\n'))
}
