/* Constructors of the back ends; net_open() chooses. */
#pragma once

#include "net/net.h"

int user_create(const struct net_spec *spec, struct loop *loop, pthread_mutex_t *lock,
		struct net_backend **n, struct err *e);
int tap_create(const struct net_spec *spec, struct loop *loop, pthread_mutex_t *lock,
	       struct net_backend **n, struct err *e);

/* Loses all frames: stands in until a front end is attached. */
extern const struct net_front net_front_none;
