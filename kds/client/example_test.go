package client_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/client"
)

// An enclave gets the key of its database. The cluster id is part of its measured code; endpoints come from the host.
func Example() {
	var (
		pinned     api.ID                                                              // embedded in the image
		quote      func(ctx context.Context, reportData [64]byte) ([]byte, error)      // of enclave.TEE
		collateral func(ctx context.Context, quote []byte) (*attest.Collateral, error) // fetched through the host
	)
	c, err := client.New(client.Config{
		ClusterID: pinned,
		Endpoints: []string{"kds-1.example.com:8443", "kds-2.example.com:8443", "kds-3.example.com:8443"},
		Root:      attest.IntelRoot(),
		Attest: func(ctx context.Context, reportData [64]byte) (ratls.Evidence, error) {
			q, err := quote(ctx, reportData)
			if err != nil {
				return ratls.Evidence{}, err
			}
			bundle, err := collateral(ctx, q)
			if err != nil {
				return ratls.Evidence{}, err
			}
			raw, err := bundle.Marshal()
			return ratls.Evidence{Quote: q, Collateral: raw}, err
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	key, reply, err := c.Key(ctx, api.KeyRequest{
		Constraint: "S:0c1a7190c1a7190c1a7190c1a7190c1a7190c1a7190c1a7190c1a7190c1a7190 PROD:1 REVOKE:2",
		Name:       "orders/db",
		Purpose:    "aes-256",
	})
	if p, ok := errors.AsType[*api.Problem](err); ok {
		for _, f := range p.Failures {
			fmt.Println(f.Clause, f.Want, f.Got, f.Hint)
		}
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	defer key.Destroy()
	fmt.Println("store with the data:", reply.Constraint, reply.Version)
}
